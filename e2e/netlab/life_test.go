package netlab_test

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/culvert-mesh/culvert/e2e/netlab"
	"github.com/culvert-mesh/culvert/redirect/nft"
)

// wantNoRules checks that nothing of the capture is left in a pod.
func (m *mesh) wantNoRules(p *netlab.Pod) {
	m.t.Helper()
	if have, err := nft.Read(p.NS()); err != nil || have != nil {
		m.t.Errorf("rules left in %s: %s, %v", p.Name(), have.Text(), err)
	}
}

// configDump is what the tests read of /config_dump; the names are ztunnel's.
type configDump struct {
	Workloads      []map[string]any                          `json:"workloads"`
	Services       []map[string]any                          `json:"services"`
	Policies       []map[string]any                          `json:"policies"`
	StagedServices map[string]any                            `json:"stagedServices"`
	StaticConfig   map[string]any                            `json:"staticConfig"`
	Version        map[string]string                         `json:"version"`
	Config         map[string]struct{ Value, Source string } `json:"config"`
	Certificates   []dumpedCertificates                      `json:"certificates"`
	WorkloadState  map[string]*dumpedPod                     `json:"workloadState"`
}

type dumpedCertificates struct {
	Identity  string              `json:"identity"`
	State     string              `json:"state"`
	CertChain []dumpedCertificate `json:"certChain"`
	RootCerts []dumpedCertificate `json:"rootCerts"`
}

type dumpedCertificate struct {
	PEM            string    `json:"pem"`
	SerialNumber   string    `json:"serialNumber"`
	ValidFrom      time.Time `json:"validFrom"`
	ExpirationTime time.Time `json:"expirationTime"`
}

type dumpedPod struct {
	State       string `json:"state"`
	Error       string `json:"error"`
	Connections struct {
		Inbound  []dumpedFlow `json:"inbound"`
		Outbound []dumpedFlow `json:"outbound"`
	} `json:"connections"`
	Info struct{ Name, Namespace, ServiceAccount string } `json:"info"`
}

type dumpedFlow struct{ Src, OriginalDst, ActualDst, Protocol string }

// dump reads an agent's configuration dump.
func (m *mesh) dump(a *netlab.Agent) *configDump {
	m.t.Helper()
	status, body, err := a.Get("15000", "/config_dump")
	if err != nil || status != http.StatusOK {
		m.t.Fatalf("GET /config_dump: %d, %v", status, err)
	}
	d := &configDump{}
	if err := json.Unmarshal([]byte(body), d); err != nil {
		m.t.Fatalf("/config_dump: %v", err)
	}
	return d
}
