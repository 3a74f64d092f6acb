package netlab_test

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/e2e/netlab"
)

// Reference 9.3 /logging: levels are shown, changed for all or a part, refused and reset while the agent works.
func TestLogging(t *testing.T) {
	m := newMesh(t)
	if status, body, err := m.a.Get("15000", "/logging"); err != nil || status != http.StatusMethodNotAllowed || !strings.Contains(body, "usage: POST /logging") {
		t.Errorf("GET: %d %q, %v", status, body, err)
	}
	for _, tt := range []struct {
		query  string
		status int
		answer string
	}{
		{"", http.StatusOK, "current log level is info\n"},
		{"?level=nonsense", http.StatusBadRequest, "nonsense"},
		{"?level=access=off", http.StatusOK, "current log level is access=off,info\n"},
		{"?level=proxy=debug,warn", http.StatusOK, "current log level is access=off,proxy=debug,warn\n"},
		{"", http.StatusOK, "current log level is access=off,proxy=debug,warn\n"},
	} {
		if status, body, err := m.a.Post("15000", "/logging"+tt.query); err != nil || status != tt.status || !strings.Contains(body, tt.answer) {
			t.Errorf("POST /logging%s: %d %q, %v; want %d %q", tt.query, status, body, err, tt.status, tt.answer)
		}
	}
	m.mustCall(m.client, at(m.remote), "remote")
	m.wantMetric(m.a, "istio_tcp_connections_closed_total", 1, `reporter="source"`)
	if status, body, err := m.a.Post("15000", "/logging?reset"); err != nil || status != http.StatusOK || body != "current log level is info\n" {
		t.Errorf("reset: %d %q, %v", status, body, err)
	}
	m.mustCall(m.client, at(m.local), "local")
	m.record(m.a, netlab.Record{"direction": "outbound", "dst.workload": "local"})
	if _, _, err := m.a.Post("15000", "/logging?level=access=debug"); err != nil {
		t.Error(err)
	}
	m.mustCall(m.client, at(m.plain), "plain")
	m.record(m.a, netlab.Record{"level": "DEBUG", "msg": "connection opened", "dst.workload": "plain"})
	for _, r := range m.a.AccessLog() {
		if r.Str("dst.workload") == "remote" {
			t.Errorf("logged though it was switched off: %v", r)
		}
	}
}

// Reference 9.4: /config_dump has ztunnel's keys, and istioctl's structures can be filled from it.
func TestConfigDump(t *testing.T) {
	m := build(t)
	m.AddService(ns, "echo", vip, map[uint16]uint16{80: 8080}, m.local, m.remote)
	m.remote.Workload.AuthorizationPolicies = []string{ns + "/some"}
	m.State.Policies = append(m.State.Policies, &netlab.Policy{
		Name: "some", Namespace: ns, Scope: "WorkloadSelector", Action: "Allow",
		Rules: [][][]map[string]any{{{{"principals": []any{map[string]any{"Prefix": "cluster.local/ns/default/"}}}}}},
	})
	m.start()
	held := m.hold(m.client, m.remote)
	plain := m.hold(m.client, m.plain)
	_, body, err := m.a.Get("15000", "/config_dump")
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]json.RawMessage{}
	if err := json.Unmarshal([]byte(body), &keys); err != nil {
		t.Fatal(err)
	}
	want := []string{"certificates", "config", "networkPolicies", "outboundTrafficPolicy", "policies", "services", "stagedServices", "staticConfig", "version", "workloadState", "workloads"}
	if got := slices.Sorted(maps.Keys(keys)); !slices.Equal(got, want) {
		t.Errorf("keys are %v, want %v", got, want)
	}
	// As istioctl ztunnel-config reads them.
	var istioctl struct {
		Workloads []struct {
			UID, Name, Namespace, ServiceAccount, Node, Protocol, Status string
			WorkloadIPs                                                  []string
			AuthorizationPolicies                                        []string
			Capacity                                                     uint32
		}
		Services []struct {
			Name, Namespace, Hostname, IPFamilies string
			VIPs                                  []string
			Ports                                 map[string]int
			Endpoints                             map[string]struct {
				WorkloadUID string
				Port        map[uint16]uint16
			}
		}
		Policies []struct {
			Name, Namespace, Scope, Action string
			Rules                          [][][]struct {
				Principals []struct{ Exact, Prefix string }
			}
		}
	}
	if err := json.Unmarshal([]byte(body), &istioctl); err != nil {
		t.Fatal(err)
	}
	if len(istioctl.Workloads) != 5 || len(istioctl.Services) != 1 || len(istioctl.Policies) != 1 {
		t.Fatalf("dump has %d workloads, %d services, %d policies", len(istioctl.Workloads), len(istioctl.Services), len(istioctl.Policies))
	}
	for i, w := range istioctl.Workloads {
		if i > 0 && w.UID < istioctl.Workloads[i-1].UID {
			t.Errorf("workloads are not sorted: %s", w.UID)
		}
		if w.Name == "remote" && (w.UID != m.remote.Workload.UID || w.Protocol != "HBONE" || w.Status != "Healthy" || w.Node != nodeB || w.ServiceAccount != "remote" ||
			!slices.Contains(w.WorkloadIPs, m.remote.Addr().String()) || !slices.Equal(w.AuthorizationPolicies, []string{"default/some"})) {
			t.Errorf("workload: %+v", w)
		}
	}
	s := istioctl.Services[0]
	if e := s.Endpoints[m.local.Workload.UID]; s.Hostname != "echo.default.svc.cluster.local" || !slices.Equal(s.VIPs, []string{"/" + vip.String()}) ||
		s.Ports["80"] != 8080 || len(s.Endpoints) != 2 || e.WorkloadUID != m.local.Workload.UID || e.Port[80] != 8080 {
		t.Errorf("service: %+v", s)
	}
	if p := istioctl.Policies[0]; p.Name != "some" || p.Action != "Allow" || p.Scope != "WorkloadSelector" || p.Rules[0][0][0].Principals[0].Prefix != "cluster.local/ns/default/" {
		t.Errorf("policy: %+v", p)
	}
	m.wantDump(held, plain)
	m.finish(held)
	m.finish(plain)
	m.eventually("connections are gone", func() bool {
		return len(m.dump(m.a).WorkloadState[m.client.Workload.UID].Connections.Outbound) == 0
	})
}

// wantDump checks what only the agent knows: settings, certificates, pods and their connections.
func (m *mesh) wantDump(held, plain *session) {
	m.t.Helper()
	d := m.dump(m.a)
	if v := d.Config["node"]; v.Value != nodeA || v.Source != "--node" {
		m.t.Errorf("setting: %+v", v)
	}
	if v := d.Config["secret-ttl"]; v.Value != "24h" || v.Source != "default" {
		m.t.Errorf("setting: %+v", v)
	}
	if d.Version["version"] == "" || d.Version["gitRevision"] == "" {
		m.t.Errorf("version: %v", d.Version)
	}
	if len(d.Certificates) != 2 || d.Certificates[0].Identity != spiffe("client") || d.Certificates[1].Identity != spiffe("local") {
		m.t.Fatalf("certificates: %+v", d.Certificates)
	}
	for _, c := range append(d.Certificates[0].CertChain, d.Certificates[0].RootCerts...) {
		text, err := base64.StdEncoding.DecodeString(c.PEM)
		if block, _ := pem.Decode(text); err != nil || block == nil || c.SerialNumber == "" || time.Until(c.ExpirationTime) < 0 || time.Since(c.ValidFrom) < 0 {
			m.t.Errorf("certificate: %+v, %v", c, err)
		}
	}
	pod := d.WorkloadState[m.client.Workload.UID]
	if pod == nil || pod.State != "Up" || pod.Info.Name != "client" || pod.Info.Namespace != ns || pod.Info.ServiceAccount != "client" || len(pod.Connections.Outbound) != 2 {
		m.t.Fatalf("pod: %+v", pod)
	}
	for i, want := range []dumpedFlow{
		{held.LocalAddr().String(), at(m.remote).String(), onPort(m.remote, 15008).String(), "HBONE"},
		{plain.LocalAddr().String(), at(m.plain).String(), at(m.plain).String(), "TCP"},
	} {
		if got := pod.Connections.Outbound[i]; got != want {
			m.t.Errorf("connection: %+v, want %+v", got, want)
		}
	}
	in := m.dump(m.b).WorkloadState[m.remote.Workload.UID].Connections.Inbound
	if len(in) != 1 || in[0].Protocol != "HBONE" || in[0].ActualDst != at(m.remote).String() || !strings.HasPrefix(in[0].Src, m.client.Addr().String()+":") {
		m.t.Errorf("inbound connections: %+v", in)
	}
}

// Reference 9.5: readiness names what it waits for.
func TestReadinessNamesItsBlockers(t *testing.T) {
	m := build(t)
	if err := m.ApplyPods(nodeA); err != nil {
		t.Fatal(err)
	}
	a, err := m.LaunchWith(nodeA, "--pods="+m.PodsPath(nodeA), "--ca-cert="+m.CACert(), "--ca-key="+m.CAKey(),
		"--xds-address=127.0.0.1:1", "--xds-root-ca="+m.CACert())
	if err != nil {
		t.Fatal(err)
	}
	m.watch(nodeA, a)
	err = a.Wait(patience, "naming what it waits for", func() (bool, error) {
		status, body, err := a.Get("15021", "/healthz/ready")
		return err == nil && status == http.StatusInternalServerError && body == "not ready, pending: state manager, workload proxy manager\n", nil
	})
	if err != nil {
		t.Error(err)
	}
	m.wantNoRules(m.client)
	m.mustCall(m.client, at(m.plain), "plain") // no pod is captured before anything is known
}
