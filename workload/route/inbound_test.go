package route_test

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/route"
	wt "github.com/culvert-mesh/culvert/workload/workloadtest"
)

const (
	clientIP, serverIP, serverVIP = "10.0.0.1", "10.0.0.2", "10.10.0.1"
	waypointIP, waypointVIP       = "10.0.0.3", "10.10.0.2"
	serverHost                    = "server.default.svc.cluster.local"
)

// mesh is a client, a server with its service and a waypoint with its own.
type mesh struct {
	server, waypoint *workload.Workload
	service          *workload.Service
	objects          []any
}

func newMesh() *mesh {
	m := &mesh{
		server:   wt.Pod("default/server", []string{serverIP}, wt.In("default/"+serverHost, 80, 8080)),
		waypoint: wt.Pod("default/waypoint", []string{waypointIP}, wt.In("default/waypoint.default", 15008, 15008)),
		service:  wt.Service("default/"+serverHost, []string{serverVIP}, wt.Ports(80, 8080)),
	}
	m.objects = []any{
		wt.Pod("default/client", []string{clientIP}), m.server, m.waypoint, m.service,
		wt.Service("default/waypoint.default", []string{waypointVIP}, wt.Ports(15008, 15008)),
	}
	return m
}

func TestInbound(t *testing.T) {
	workloadWaypoint := func(ref string) func(*mesh) {
		return func(m *mesh) { m.server.Waypoint = wt.Gateway("/"+ref, 15008) }
	}
	serviceWaypoint := func(ref string) func(*mesh) {
		return func(m *mesh) { m.service.Waypoint = wt.Gateway("/"+ref, 15008) }
	}
	clientWaypoint := func(ref string) func(*mesh) {
		return func(m *mesh) {
			m.objects[0] = wt.Pod("default/client", []string{clientIP}, func(w *workload.Workload) { w.Waypoint = wt.Gateway("/"+ref, 15008) })
		}
	}
	weighted := func(m *mesh) {
		m.service.WeightedWaypoints = []workload.WeightedWaypoint{{Destination: *wt.Gateway("default/waypoint.default", 15008), Weight: 1}}
	}
	private := func(m *mesh) {
		m.service.Waypoint, m.service.Visibility = wt.Gateway("/"+waypointIP, 15008), workload.VisibilityNamespace
	}
	elsewhere := func(m *mesh) { m.waypoint.Namespace = "infra" }
	proxyTunnel := func(w func(*mesh) *workload.Workload) func(*mesh) {
		return func(m *mesh) {
			w(m).ApplicationTunnel = &workload.ApplicationTunnel{Protocol: workload.TunnelProxy, Port: 15088}
		}
	}
	atWaypoint := proxyTunnel(func(m *mesh) *workload.Workload { return m.waypoint })
	atServer := proxyTunnel(func(m *mesh) *workload.Workload { return m.server })
	noneTunnel := func(m *mesh) { m.server.ApplicationTunnel = &workload.ApplicationTunnel{} }
	for _, tc := range []struct {
		name      string
		mods      []func(*mesh)
		local     string // address of the accepted socket
		authority string
		want      string
		tunnel    string // tunnel target
		status    int
		err       error
	}{
		{name: "workload", local: serverIP, authority: serverIP + ":8080", want: serverIP + ":8080"},
		{name: "mapped-socket", local: "::ffff:" + serverIP, authority: serverIP + ":8080", want: serverIP + ":8080"},
		{name: "service-host", local: serverIP, authority: serverHost + ":80", want: serverIP + ":8080"},
		{name: "host-unknown", local: serverIP, authority: "nobody.example:80", status: 503, err: route.ErrNoHostname},
		{name: "host-unknown-port", local: serverIP, authority: serverHost + ":81", status: 503, err: route.ErrNoPort},
		{
			name: "host-named-port", mods: []func(*mesh){func(m *mesh) { m.service.Ports = wt.PortMap(80, 0) }},
			local: serverIP, authority: serverHost + ":80", want: serverIP + ":8080",
		},
		{
			name:  "host-named-port-unresolved",
			mods:  []func(*mesh){func(m *mesh) { m.service.Ports = wt.PortMap(81, 0) }},
			local: serverIP, authority: serverHost + ":81", status: 503, err: route.ErrNoPort,
		},
		{
			name: "host-invisible", mods: []func(*mesh){private, elsewhere},
			local: waypointIP, authority: serverHost + ":80", status: 503, err: route.ErrNoHostname,
		},
		{name: "workload-waypoint-by-pod", mods: []func(*mesh){workloadWaypoint(waypointIP)}, local: waypointIP, authority: serverIP + ":8080", want: waypointIP + ":8080"},
		{name: "workload-waypoint-by-vip", mods: []func(*mesh){workloadWaypoint(waypointVIP)}, local: waypointIP, authority: serverIP + ":8080", want: waypointIP + ":8080"},
		{
			name: "workload-waypoint-tunnel", mods: []func(*mesh){workloadWaypoint(waypointVIP), atWaypoint},
			local: waypointIP, authority: serverIP + ":8080", want: waypointIP + ":15088", tunnel: serverIP + ":8080",
		},
		{name: "service-waypoint-by-pod", mods: []func(*mesh){serviceWaypoint(waypointIP)}, local: waypointIP, authority: serverVIP + ":8080", want: waypointIP + ":8080"},
		{name: "service-waypoint-by-vip", mods: []func(*mesh){serviceWaypoint(waypointVIP)}, local: waypointIP, authority: serverVIP + ":8080", want: waypointIP + ":8080"},
		{name: "service-waypoint-weighted", mods: []func(*mesh){weighted}, local: waypointIP, authority: serverVIP + ":8080", want: waypointIP + ":8080"},
		{name: "service-waypoint-of-private-service", mods: []func(*mesh){private, elsewhere}, local: waypointIP, authority: serverVIP + ":8080", want: waypointIP + ":8080"},
		{
			name: "service-waypoint-tunnel", mods: []func(*mesh){serviceWaypoint(waypointVIP), atWaypoint},
			local: waypointIP, authority: serverVIP + ":8080", want: waypointIP + ":15088", tunnel: serverVIP + ":8080",
		},
		{name: "tunnel-takes-any-address", mods: []func(*mesh){atWaypoint}, local: waypointIP, authority: "1.2.3.4:99", want: waypointIP + ":15088", tunnel: "1.2.3.4:99"},
		{name: "tunnel-without-port", mods: []func(*mesh){noneTunnel}, local: serverIP, authority: serverIP + ":8080", want: serverIP + ":8080", tunnel: serverIP + ":8080"},
		{name: "tunnel-and-host", mods: []func(*mesh){atServer}, local: serverIP, authority: serverHost + ":80", want: serverIP + ":15088", tunnel: serverVIP + ":80"},
		{
			name: "tunnel-and-host-prefers-own-network-and-ipv4",
			mods: []func(*mesh){atServer, func(m *mesh) {
				m.service.VIPs = wt.Service("a/b", []string{"other/10.10.0.9", "fd00::1", serverVIP}).VIPs
			}},
			local: serverIP, authority: serverHost + ":80", want: serverIP + ":15088", tunnel: serverVIP + ":80",
		},
		{
			name:  "tunnel-and-host-without-vip",
			mods:  []func(*mesh){atServer, func(m *mesh) { m.service.VIPs = nil }},
			local: serverIP, authority: serverHost + ":80", status: 503, err: route.ErrNoVIP,
		},
		{name: "server-ip-mismatch", local: serverIP, authority: clientIP + ":8080", status: 400, err: route.ErrIPMismatch},
		{name: "waypoint-without-attachment", local: waypointIP, authority: clientIP + ":8080", status: 400, err: route.ErrIPMismatch},
		{name: "unknown-address", local: waypointIP, authority: "1.2.3.4:8080", status: 400, err: route.ErrIPMismatch},
		{name: "service-waypoint-used-for-workload", mods: []func(*mesh){serviceWaypoint(waypointIP)}, local: waypointIP, authority: serverIP + ":8080", status: 400, err: route.ErrIPMismatch},
		{name: "workload-waypoint-used-for-service", mods: []func(*mesh){workloadWaypoint(waypointIP)}, local: waypointIP, authority: serverVIP + ":8080", status: 400, err: route.ErrIPMismatch},
		{name: "ipv6-mismatch", local: serverIP, authority: "[fd00::9]:8080", status: 400, err: route.ErrIPMismatch},
		// A waypoint stands in for those that refer to itself: for nobody who refers to another pod or service.
		{name: "waypoint-is-another-pod", mods: []func(*mesh){clientWaypoint(waypointIP)}, local: serverIP, authority: clientIP + ":8080", status: 400, err: route.ErrIPMismatch},
		{name: "waypoint-is-another-service", mods: []func(*mesh){clientWaypoint(waypointVIP)}, local: serverIP, authority: clientIP + ":8080", status: 400, err: route.ErrIPMismatch},
		{
			name: "workload-goes-before-vip",
			mods: []func(*mesh){serviceWaypoint(waypointIP), func(m *mesh) {
				m.service.VIPs = wt.Service("a/b", []string{clientIP}).VIPs
			}},
			local: waypointIP, authority: clientIP + ":8080", status: 400, err: route.ErrIPMismatch,
		},
		{name: "waypoint-reference-unknown", mods: []func(*mesh){workloadWaypoint("10.99.0.1")}, local: waypointIP, authority: serverIP + ":8080", status: 400, err: route.ErrIPMismatch},
		{name: "illegal-port", local: serverIP, authority: serverIP + ":15008", status: 503, err: route.ErrSelfCall},
		{name: "illegal-port-before-tunnel", mods: []func(*mesh){atServer}, local: serverIP, authority: serverIP + ":15001", status: 503, err: route.ErrSelfCall},
		{
			name: "illegal-port-by-host", mods: []func(*mesh){func(m *mesh) { m.service.Ports = wt.PortMap(81, 15006) }},
			local: serverIP, authority: serverHost + ":81", status: 503, err: route.ErrSelfCall,
		},
		{name: "no-authority", local: serverIP, authority: "", status: 400, err: route.ErrBadAuthority},
		{name: "no-port", local: serverIP, authority: serverIP, status: 400, err: route.ErrBadAuthority},
		{name: "host-without-port", local: serverIP, authority: serverHost, status: 400, err: route.ErrBadAuthority},
		{name: "no-host", local: serverIP, authority: ":80", status: 400, err: route.ErrBadAuthority},
		{name: "bad-port", local: serverIP, authority: serverIP + ":x", status: 400, err: route.ErrBadAuthority},
		{name: "port-too-large", local: serverIP, authority: serverIP + ":65536", status: 400, err: route.ErrBadAuthority},
		{name: "port-zero", local: serverIP, authority: serverIP + ":0", status: 400, err: route.ErrBadAuthority},
		{name: "zone", local: serverIP, authority: "[fe80::1%eth0]:80", status: 400, err: route.ErrBadAuthority},
		{name: "mapped-authority", local: serverIP, authority: "[::ffff:" + serverIP + "]:80", want: serverIP + ":80"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newMesh()
			for _, mod := range tc.mods {
				mod(m)
			}
			local := m.server
			if tc.local == waypointIP {
				local = m.waypoint
			}
			got, err := route.Inbound(route.InboundInput{
				Snapshot:     wt.Snapshot(m.objects...),
				Local:        local,
				Authority:    tc.authority,
				LocalAddr:    netip.AddrPortFrom(netip.MustParseAddr(tc.local), 15008),
				IllegalPorts: []uint16{15001, 15006, 15008},
			})
			if tc.err != nil {
				var e *route.InboundError
				if !errors.As(err, &e) || !errors.Is(err, tc.err) || e.Status != tc.status || e.Error() == "" {
					t.Errorf("got %v, want %v with %d", err, tc.err, tc.status)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got.Addr.String() != tc.want {
				t.Errorf("leads to %s, want %s", got.Addr, tc.want)
			}
			if (got.Tunnel != nil) != (tc.tunnel != "") || tc.tunnel != "" && got.TunnelTarget.String() != tc.tunnel {
				t.Errorf("tunnel %v to %s, want %q", got.Tunnel, got.TunnelTarget, tc.tunnel)
			}
		})
	}
}

func TestMismatchText(t *testing.T) {
	m := newMesh()
	_, err := route.Inbound(route.InboundInput{
		Snapshot: wt.Snapshot(m.objects...), Local: m.server, Authority: clientIP + ":80",
		LocalAddr: netip.MustParseAddrPort(serverIP + ":15008"),
	})
	if err == nil || err.Error() != "ip mismatch: 10.0.0.2 != 10.0.0.1" {
		t.Errorf("err = %v", err)
	}
}

func TestInboundService(t *testing.T) {
	local := wt.Pod("ns/a", nil, wt.In("ns/x.ns"), wt.In("ns/y.ns", 80, 9090), wt.In("ns/z.ns"))
	up := route.Upstream{Services: []*workload.Service{
		wt.Service("ns/x.ns", nil, wt.Ports(80, 8080)), wt.Service("ns/y.ns", nil, wt.Ports(80, 0)), wt.Service("ns/z.ns", nil, wt.Ports(80, 8080)),
	}}
	for _, tc := range []struct {
		name, host string
		port       uint16
		want       string
	}{
		{"named-by-peer", "z.ns", 8080, "z.ns"},
		{"peer-names-a-stranger", "evil.example", 8080, "x.ns"},
		{"target-port", "", 8080, "x.ns"},
		{"endpoint-port", "", 9090, "y.ns"},
		{"no-match", "", 1, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			up.Addr = netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), tc.port)
			var got string
			if s := up.Service(local, tc.host); s != nil {
				got = s.Hostname
			}
			if got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

// Another namespace's EndpointSlice may name a pod; that takes no connections of the pod's own services, for telemetry.
func TestServicesOfOthersComeLast(t *testing.T) {
	svc := wt.Service("ns/web.ns", nil, wt.Ports(80, 8080))
	foreign := wt.Service("a/web.a", nil, wt.Ports(80, 8080))
	local := wt.Pod("ns/web", []string{serverIP}, wt.In("ns/web.ns", 80, 8080), wt.In("a/web.a", 80, 8080))
	up, err := route.Inbound(route.InboundInput{
		Snapshot: wt.Snapshot(local, svc, foreign), Local: local, Authority: serverIP + ":8080", LocalAddr: netip.MustParseAddrPort(serverIP + ":15008"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := up.Service(local, ""); got == nil || got.Hostname != "web.ns" {
		t.Errorf("the service is %v, want that of the pod's own namespace", got)
	}
	if got := up.Service(local, "web.a"); got == nil || got.Hostname != "web.a" {
		t.Errorf("the service is %v, want the one that the peer names", got)
	}
}

func FuzzInboundAuthority(f *testing.F) {
	for _, s := range []string{"10.0.0.2:80", "[fd00::1]:80", serverHost + ":80", ":80", "[::", "a:b:c", "x:99999"} {
		f.Add(s)
	}
	m := newMesh()
	snap := wt.Snapshot(m.objects...)
	f.Fuzz(func(t *testing.T, authority string) {
		up, err := route.Inbound(route.InboundInput{
			Snapshot: snap, Local: m.server, Authority: authority, LocalAddr: netip.MustParseAddrPort(serverIP + ":15008"),
		})
		if err == nil && (up.Addr.Addr().String() != serverIP || up.Addr.Port() == 0) {
			t.Fatalf("%q leads to %s", authority, up.Addr)
		}
		var e *route.InboundError
		if err != nil && !errors.As(err, &e) {
			t.Fatalf("untyped error %v", err)
		}
	})
}
