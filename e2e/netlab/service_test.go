package netlab_test

import (
	"context"
	"net/netip"
	"testing"

	"github.com/culvert-mesh/culvert/e2e/netlab"
)

var vip = netip.MustParseAddr("10.96.0.10")

func vipPort(port uint16) netip.AddrPort { return netip.AddrPortFrom(vip, port) }

// service_loadbalancing: two endpoints, one of them with another target port.
func TestServiceBalancesItsEndpoints(t *testing.T) {
	m := build(t)
	m.AddService(ns, "echo", vip, map[uint16]uint16{80: 8080}, m.local, m.remote)
	m.remote.Workload.Services[ns+"/echo."+ns+".svc.cluster.local"] = map[uint16]uint16{80: 9090}
	m.serve(m.remote, 9090)
	m.start()
	seen := map[string]int{}
	for range 50 {
		words := m.mustCall(m.client, vipPort(80), "")
		seen[words[0]]++
	}
	if len(seen) != 2 || seen["local"] < 5 || seen["remote"] < 5 {
		t.Errorf("50 connections reached %v", seen)
	}
	m.record(m.a, netlab.Record{"direction": "outbound", "dst.service": "echo." + ns + ".svc.cluster.local", "dst.hbone_addr": netip.AddrPortFrom(m.remote.Addr(), 9090).String()})
	m.wantMetric(m.a, "istio_tcp_connections_opened_total", 5, `reporter="source"`, `destination_service="echo.default.svc.cluster.local"`, `destination_service_name="echo"`)
}

// An endpoint that refuses, or whose agent is gone, costs no connection: the next one is tried.
func TestNextEndpointIsTried(t *testing.T) {
	m := build(t)
	dead, err := m.AddPod(nodeB, ns, "dead") // enrolled, but nothing listens on 8080
	if err != nil {
		t.Fatal(err)
	}
	silent, err := m.AddPod(nodeB, ns, "silent") // announced as enrolled, but no agent serves it
	if err != nil {
		t.Fatal(err)
	}
	silent.SetCaptured(false)
	m.AddService(ns, "echo", vip, map[uint16]uint16{80: 8080}, m.remote, dead, silent)
	m.start()
	for range 30 {
		m.mustCall(m.client, vipPort(80), "remote")
	}
}

func TestServiceWithoutEndpointsRefuses(t *testing.T) {
	m := build(t)
	m.AddService(ns, "empty", vip, map[uint16]uint16{80: 8080})
	m.start()
	m.refused(m.client, vipPort(80))
	m.record(m.a, netlab.Record{"direction": "outbound", "level": "WARN", "error": "no healthy upstream: " + vipPort(80).String()})
}

func TestServicePortThatDoesNotExistRefuses(t *testing.T) {
	m := build(t)
	m.AddService(ns, "echo", vip, map[uint16]uint16{80: 8080}, m.remote)
	m.start()
	m.refused(m.client, vipPort(81))
	m.mustCall(m.client, vipPort(80), "remote")
}

// Endpoints that come and go in the file are used and left at once.
func TestEndpointsComeAndGo(t *testing.T) {
	m := build(t)
	m.AddService(ns, "echo", vip, map[uint16]uint16{80: 8080}, m.local)
	m.start()
	m.mustCall(m.client, vipPort(80), "local")
	services := m.local.Workload.Services
	m.local.Workload.Services, m.remote.Workload.Services = nil, services
	m.apply()
	m.eventually("served by the new endpoint", func() bool {
		words, err := m.call(m.client, vipPort(80))
		return err == nil && words[0] == "remote"
	})
	m.mustCall(m.client, vipPort(80), "remote")
}

// DNS as an application sees it: names of services, search domains, and everything else from the server that it asked.
func TestDNS(t *testing.T) {
	m := build(t)
	m.AddService(ns, "echo", vip, map[uint16]uint16{80: 8080}, m.remote)
	upstream := m.startResolver(m.plain)
	m.start()
	resolver := m.resolverIn(m.client, upstream)
	for name, want := range map[string]string{
		"echo." + ns + ".svc.cluster.local": vip.String(),
		"echo." + ns + ".svc":               vip.String(),
		"echo." + ns:                        vip.String(),
		"outside.example.com":               "192.0.2.7",
	} {
		addrs, err := resolver.LookupNetIP(context.Background(), "ip4", name+".")
		if err != nil || len(addrs) != 1 || addrs[0].String() != want {
			t.Errorf("%s: %v, %v; want %s", name, addrs, err, want)
		}
	}
	if _, err := resolver.LookupNetIP(context.Background(), "ip4", "nobody.example.com."); !isNotFound(err) {
		t.Errorf("a name that does not exist: %v", err)
	}
	m.wantMetric(m.a, "istio_dns_requests_total", 5)
}

// An upstream that is down gives SERVFAIL, not silence.
func TestDNSUpstreamDown(t *testing.T) {
	m := newMesh(t)
	resolver := m.resolverIn(m.client, netip.AddrPortFrom(m.plain.Addr(), 53)) // nobody listens there
	_, err := resolver.LookupNetIP(context.Background(), "ip4", "outside.example.com.")
	if err == nil || isNotFound(err) {
		t.Errorf("got %v, want a server failure", err)
	}
}
