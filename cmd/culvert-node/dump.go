package main

import (
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	"crypto/x509"

	"go.yaml.in/yaml/v3"

	"github.com/culvert-mesh/culvert/hbone/proxy"
	"github.com/culvert-mesh/culvert/redirect/podset"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/source/file"
)

// dump returns the parts of /config_dump in ztunnel's shape (reference 9.4): istioctl reads them.
func (n *node) dump() map[string]func() (any, error) {
	parts := map[string]func() (any, error){
		"workloads": func() (any, error) {
			ws := slices.SortedFunc(n.store.Snapshot().Workloads(), func(a, b *workload.Workload) int { return strings.Compare(a.UID, b.UID) })
			return section(file.State{Workloads: ws}, "workloads")
		},
		"services": n.dumpServices,
		"policies": func() (any, error) {
			return section(file.State{Policies: n.policies.Snapshot().Policies()}, "policies")
		},
		"networkPolicies": n.dumpNetworks,
		"stagedServices":  n.dumpStaged,
		"staticConfig": func() (any, error) {
			return map[string]any{"workloads": []any{}, "services": []any{}, "policies": []any{}}, nil
		},
		"version": func() (any, error) {
			return map[string]string{"version": version, "gitRevision": revision, "goVersion": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH}, nil
		},
		"config":        n.dumpConfig,
		"certificates":  n.dumpCertificates,
		"workloadState": n.dumpPods,
		"outboundTrafficPolicy": func() (any, error) {
			mesh, own := n.outbound.All()
			namespaces := make(map[string]string, len(own))
			for name, mode := range own {
				namespaces[name] = mode.String()
			}
			return map[string]any{"mode": mesh.String(), "namespaces": namespaces}, nil
		},
	}
	if n.cluster != nil {
		parts["kubernetes"] = func() (any, error) { return n.cluster.dump(n.ready.Pending()) }
	}
	return parts
}

// dumpConfig gives the settings in force and where each comes from. As ztunnel's they are one object.
func (n *node) dumpConfig() (any, error) {
	type setting struct {
		Value  string `json:"value"`
		Source string `json:"source"`
	}
	out := map[string]setting{}
	for _, v := range n.conf.Values() {
		out[v.Flag] = setting{v.Value, v.Source}
	}
	return out, nil
}

// section encodes one part of the state as the workload file has it.
func section(s file.State, key string) (any, error) {
	text, err := file.Encode(s)
	if err != nil {
		return nil, err
	}
	var doc map[string]any
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, fmt.Errorf("dump %s: %w", key, err)
	}
	if doc[key] == nil {
		return []any{}, nil
	}
	return jsonable(doc[key]), nil
}

// jsonable turns maps with other keys than strings, which YAML has and JSON has not, into ones with strings.
func jsonable(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			v[k] = jsonable(e)
		}
		return v
	case map[any]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			out[fmt.Sprint(k)] = jsonable(e)
		}
		return out
	case []any:
		for i, e := range v {
			v[i] = jsonable(e)
		}
		return v
	}
	return v
}

func (n *node) dumpServices() (any, error) {
	snap := n.store.Snapshot()
	services := slices.SortedFunc(snap.Services(), func(a, b *workload.Service) int {
		return strings.Compare(a.Hostname+"\x00"+a.Namespace, b.Hostname+"\x00"+b.Namespace)
	})
	v, err := section(file.State{Services: services}, "services")
	if err != nil {
		return nil, err
	}
	list, _ := v.([]any)
	for i, s := range services {
		if m, ok := list[i].(map[string]any); ok {
			m["endpoints"] = endpoints(snap.Endpoints(s.Key()))
		}
	}
	return list, nil
}

func endpoints(es []workload.Endpoint) map[string]any {
	out := make(map[string]any, len(es))
	for _, e := range es {
		ports := make(map[string]uint16, len(e.Ports))
		for service, target := range e.Ports {
			ports[fmt.Sprint(service)] = target
		}
		out[e.Workload.UID] = map[string]any{"workloadUid": e.Workload.UID, "port": ports, "status": e.Workload.Health.String()}
	}
	return out
}

func (n *node) dumpStaged() (any, error) {
	out := map[string]any{}
	for key, es := range n.store.Snapshot().Staged() {
		out[key.String()] = endpoints(es)
	}
	return out, nil
}

type dumpedCertificate struct {
	PEM            string `json:"pem"`
	SerialNumber   string `json:"serialNumber"`
	ValidFrom      string `json:"validFrom"`
	ExpirationTime string `json:"expirationTime"`
}

func dumpChain(certs []*x509.Certificate) []dumpedCertificate {
	out := make([]dumpedCertificate, 0, len(certs))
	for _, c := range certs {
		block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
		out = append(out, dumpedCertificate{
			PEM: base64.StdEncoding.EncodeToString(block), SerialNumber: c.SerialNumber.String(),
			ValidFrom: c.NotBefore.UTC().Format(time.RFC3339), ExpirationTime: c.NotAfter.UTC().Format(time.RFC3339),
		})
	}
	return out
}

func (n *node) dumpCertificates() (any, error) {
	type entry struct {
		Identity  string              `json:"identity"`
		State     string              `json:"state"`
		CertChain []dumpedCertificate `json:"certChain"`
		RootCerts []dumpedCertificate `json:"rootCerts"`
	}
	out := []entry{}
	for _, s := range n.certificates.manager.Statuses() {
		e := entry{Identity: s.ID.String(), State: s.State, CertChain: []dumpedCertificate{}, RootCerts: []dumpedCertificate{}}
		if s.SVID != nil {
			e.CertChain = dumpChain(s.SVID.Certificates)
			e.RootCerts = dumpChain(s.SVID.Bundle.Certificates())
		}
		out = append(out, e)
	}
	return out, nil
}

type dumpedFlow struct {
	Src         string `json:"src"`
	OriginalDst string `json:"originalDst"`
	ActualDst   string `json:"actualDst"`
	Protocol    string `json:"protocol"`
}

func (n *node) dumpPods() (any, error) {
	type connections struct {
		Inbound  []dumpedFlow `json:"inbound"`
		Outbound []dumpedFlow `json:"outbound"`
	}
	type info struct {
		Name           string `json:"name"`
		Namespace      string `json:"namespace"`
		ServiceAccount string `json:"serviceAccount"`
	}
	type entry struct {
		State       string      `json:"state"`
		Error       string      `json:"error,omitempty"`
		Connections connections `json:"connections"`
		Info        info        `json:"info"`
	}
	out := map[string]*entry{}
	for _, s := range n.set.Pods() {
		e := &entry{State: "Pending", Info: info{s.Pod.Name, s.Pod.Namespace, s.Pod.ServiceAccount}, Connections: connections{[]dumpedFlow{}, []dumpedFlow{}}}
		if s.State == podset.Enrolled {
			e.State = "Up"
		}
		if s.Err != nil {
			e.Error = s.Err.Error()
		}
		out[s.Pod.UID] = e
	}
	for _, p := range n.proxy.Pods() {
		e := out[p.UID()]
		if e == nil {
			continue
		}
		for _, f := range p.Flows() {
			d := dumpedFlow{Src: f.Source.Addr.String(), OriginalDst: f.OriginalDst.String(), ActualDst: f.ActualDst.String(), Protocol: f.Protocol.String()}
			if f.Direction == proxy.Inbound {
				e.Connections.Inbound = append(e.Connections.Inbound, d)
			} else {
				e.Connections.Outbound = append(e.Connections.Outbound, d)
			}
		}
	}
	return out, nil
}
