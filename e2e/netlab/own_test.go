package netlab_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/e2e/netlab"
	"github.com/culvert-mesh/culvert/hbone"
)

// httpGet asks a server over plain HTTP from inside a pod.
func (m *mesh) httpGet(from *netlab.Pod, addr netip.AddrPort, path string) (int, string, error) {
	transport := &http.Transport{DialContext: from.Dial, DisableKeepAlives: true}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr.String()+path, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

// withOwnPod starts the agent of node-a as a pod of its own with an identity, and returns that.
func (m *mesh) withOwnPod() *netlab.Pod {
	m.t.Helper()
	node := m.Topology().Node(nodeA)
	w := &netlab.Workload{
		UID: "cluster1//Pod/default/agent", Name: "agent", Namespace: ns, ServiceAccount: "agent", Node: nodeA, Protocol: "HBONE",
		WorkloadIPs: []string{node.Addr().String(), node.Addr6().String()},
	}
	m.State.Workloads = append(m.State.Workloads, w)
	m.a = m.agent(nodeA, "--pod-name=agent", "--pod-namespace="+ns, "--service-account=agent")
	return &netlab.Pod{Workload: w}
}

// Reference 10.4 test_hbone_metrics_access: whoever has an identity reads the agent's metrics over mTLS, raw or from an
// enrolled pod that knows nothing of it; policies of the agent's own workload are kept.
func TestMetricsOverHBONE(t *testing.T) {
	m := build(t)
	own := m.withOwnPod()
	node := m.Topology().Node(nodeA).Addr()
	metrics := netip.AddrPortFrom(node, 15020)
	get := func(as string) (string, error) {
		c := m.raw(m.stranger, spiffe(as), own)
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		conn, err := c.dialer.Dial(ctx, netip.AddrPortFrom(node, 15008), hbone.Request{Authority: metrics.String()})
		if err != nil {
			return "", err
		}
		_ = conn.SetDeadline(time.Now().Add(patience))
		fmt.Fprintf(conn, "GET /metrics HTTP/1.0\r\n\r\n")
		body, err := io.ReadAll(conn)
		_ = conn.CloseWrite()
		return string(body), err
	}
	if body, err := get("scraper"); err != nil || !strings.HasPrefix(body, "HTTP/1.0 200 ") || !strings.Contains(body, "istio_build") {
		t.Fatalf("GET /metrics over HBONE: %.200q, %v", body, err)
	}
	m.record(m.a, netlab.Record{"direction": "inbound", "src.identity": spiffe("scraper"), "dst.identity": spiffe("agent"), "dst.workload": "agent", "dst.hbone_addr": metrics})

	if status, body, err := m.httpGet(m.client, metrics, "/metrics"); err != nil || status != http.StatusOK || !strings.Contains(body, "istio_build") {
		t.Errorf("GET from an enrolled pod: %d %.200q, %v", status, body, err)
	}
	m.record(m.a, netlab.Record{"direction": "inbound", "src.identity": spiffe("client"), "dst.workload": "agent"})
	m.record(m.a, netlab.Record{"direction": "outbound", "src.identity": spiffe("client"), "dst.identity": spiffe("agent")})

	m.State.Policies = append(m.State.Policies, &netlab.Policy{
		Name: "scrapers", Namespace: ns, Scope: "WorkloadSelector", Action: "Allow",
		Rules: [][][]map[string]any{{{{"principals": []any{map[string]any{"Exact": "cluster.local/ns/default/sa/scraper"}}}}}},
	})
	own.Workload.AuthorizationPolicies = []string{ns + "/scrapers"}
	m.apply()
	m.eventually("others refused", func() bool { _, _, err := m.httpGet(m.client, metrics, "/metrics"); return err != nil })
	if _, err := get("scraper"); err != nil {
		t.Errorf("the scraper is refused too: %v", err)
	}
	// Loopback services of the agent stay its own.
	c := m.raw(m.stranger, spiffe("scraper"), own)
	for _, authority := range []string{netip.AddrPortFrom(node, 15000).String(), "127.0.0.1:15000", netip.AddrPortFrom(node, 15008).String()} {
		if conn, err := c.dialer.Dial(context.Background(), netip.AddrPortFrom(node, 15008), hbone.Request{Authority: authority}); err == nil {
			_ = conn.Close()
			t.Errorf("CONNECT %s is answered", authority)
		}
	}
	if d := m.dump(m.a); d.WorkloadState[own.Workload.UID] != nil || len(d.WorkloadState) != 2 {
		t.Errorf("pods in the dump: %v", d.WorkloadState)
	}
}
