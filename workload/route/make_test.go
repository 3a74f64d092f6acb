package route_test

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/route"
	wt "github.com/culvert-mesh/culvert/workload/workloadtest"
)

func source(mods ...func(*workload.Workload)) *workload.Workload {
	return wt.Pod("ns/source", []string{"127.0.0.10", "fd00::10"}, mods...)
}

// plan asks for the connection to dst ("ip:port") in a mesh of the source and
// the objects.
func plan(src *workload.Workload, dst string, objects ...any) route.Plan {
	return route.Make(input(src, dst, objects...))
}

func input(src *workload.Workload, dst string, objects ...any) route.Input {
	return route.Input{
		Snapshot:    wt.Snapshot(append(objects, src)...),
		Source:      src,
		Destination: netip.MustParseAddrPort(dst),
		Network:     src.Network,
		Rand:        func(int) int { return 0 },
	}
}

// text writes a target as "protocol dial authority [identities] flags".
func text(t route.Target) string {
	dial := t.Dial.String()
	if t.Hostname != "" {
		dial = t.Hostname
	}
	s := t.Protocol.String() + " " + dial
	if t.Authority != "" {
		s += " " + t.Authority
	}
	if len(t.Expected) > 0 {
		s += " " + ids(t.Expected)
	}
	if t.Protocol == route.ProtocolDoubleHBONE {
		s += " inner" + ids(t.InnerExpected)
	}
	if t.Waypoint {
		s += " waypoint"
	}
	if t.Service != nil {
		s += " for " + t.Service.Hostname
	}
	return s
}

func ids(all []identity.ID) string {
	var out []string
	for _, id := range all {
		out = append(out, id.Namespace()+"."+id.ServiceAccount())
	}
	return "[" + strings.Join(out, " ") + "]"
}

func waypointed(destination string) func(*workload.Workload) {
	return func(w *workload.Workload) { w.Waypoint = wt.Gateway(destination, 15008) }
}

func serviceWaypoint(destination string) func(*workload.Service) {
	return func(s *workload.Service) { s.Waypoint = wt.Gateway(destination, 15008) }
}

func behind(gateway string) func(*workload.Workload) {
	return func(w *workload.Workload) { w.NetworkGateway = wt.Gateway(gateway, 15009) }
}

func sans(ids ...string) func(*workload.Service) {
	return func(s *workload.Service) {
		for _, id := range ids {
			s.SubjectAltNames = append(s.SubjectAltNames, identity.MustParse("spiffe://cluster.local/ns/"+strings.ReplaceAll(id, "/", "/sa/")))
		}
	}
}

func families(f workload.IPFamilies) func(*workload.Service) {
	return func(s *workload.Service) { s.IPFamilies = f }
}

func on(node string) func(*workload.Workload) { return func(w *workload.Workload) { w.Node = node } }

func hostNetwork(w *workload.Workload) { w.NetworkMode = workload.HostNetwork }

func tunnelled(port uint16) func(*workload.Workload) {
	return func(w *workload.Workload) {
		w.ApplicationTunnel = &workload.ApplicationTunnel{Protocol: workload.TunnelProxy, Port: port}
	}
}

func TestMake(t *testing.T) {
	const ex = "ns/example.com"
	vip := []string{"127.0.0.3"}
	inEx := wt.In(ex, 80, 8080)
	waypointSvc := wt.Service("ns/waypoint.com", []string{"127.0.0.4"}, wt.Ports(15008, 15008), sans("ns/waypoint-san"))
	waypointPod := wt.Pod("ns/waypoint", []string{"127.0.0.5", "fd00::5"}, wt.In("ns/waypoint.com", 15008, 15008))
	remote := wt.Network("remote")
	gatewayPod := wt.Pod("ns/gateway", []string{"10.22.1.1"}, remote)
	for _, tc := range []struct {
		name    string
		src     *workload.Workload // source() when nil
		dst     string
		objects []any
		kind    route.Kind
		targets []string
		err     error
		reason  string
	}{
		{name: "unknown-destination", dst: "1.2.3.4:80", kind: route.Passthrough, targets: []string{"TCP 1.2.3.4:80"}},
		{
			name: "known-tcp-remote-node", dst: "127.0.0.2:80", objects: []any{wt.Pod("ns/b", []string{"127.0.0.2"}, wt.Plain, on("x"))},
			kind: route.TCP, targets: []string{"TCP 127.0.0.2:80"},
		},
		{
			name: "known-hbone-remote-node", dst: "127.0.0.2:80", objects: []any{wt.Pod("ns/b", []string{"127.0.0.2"}, on("x"))},
			kind: route.Tunnel, targets: []string{"HBONE 127.0.0.2:15008 127.0.0.2:80 [ns.b]"},
		},
		{
			name: "same-node-hbone", src: source(on("x")), dst: "127.0.0.2:80", objects: []any{wt.Pod("ns/b", []string{"127.0.0.2"}, on("x"))},
			kind: route.Tunnel, targets: []string{"HBONE 127.0.0.2:15008 127.0.0.2:80 [ns.b]"},
		},
		{
			name: "same-node-tcp", src: source(on("x")), dst: "127.0.0.2:80", objects: []any{wt.Pod("ns/b", []string{"127.0.0.2"}, on("x"), wt.Plain)},
			kind: route.TCP, targets: []string{"TCP 127.0.0.2:80"},
		},
		{
			name: "mapped-destination", dst: "[::ffff:127.0.0.2]:80", objects: []any{wt.Pod("ns/b", []string{"127.0.0.2"})},
			kind: route.Tunnel, targets: []string{"HBONE 127.0.0.2:15008 127.0.0.2:80 [ns.b]"},
		},
		{
			name: "ipv6", dst: "[fd00::2]:80", objects: []any{wt.Pod("ns/b", []string{"127.0.0.2", "fd00::2"})},
			kind: route.Tunnel, targets: []string{"HBONE [fd00::2]:15008 [fd00::2]:80 [ns.b]"},
		},
		{
			name: "source-waypoint-is-ignored", src: source(waypointed("ns/waypoint.com")), dst: "127.0.0.2:80",
			objects: []any{waypointSvc, waypointPod, wt.Pod("ns/b", []string{"127.0.0.2"}, wt.Plain)},
			kind:    route.TCP, targets: []string{"TCP 127.0.0.2:80"},
		},
		{
			name: "workload-waypoint-by-host", dst: "127.0.0.2:80",
			objects: []any{waypointSvc, waypointPod, wt.Pod("ns/b", []string{"127.0.0.2"}, wt.Plain, waypointed("ns/waypoint.com"))},
			kind:    route.Tunnel, targets: []string{"HBONE 127.0.0.5:15008 127.0.0.2:80 [ns.waypoint ns.waypoint-san] waypoint"},
		},
		{
			name: "workload-waypoint-by-pod-ip", dst: "127.0.0.2:80",
			objects: []any{waypointPod, wt.Pod("ns/b", []string{"127.0.0.2"}, waypointed("/127.0.0.5"))},
			kind:    route.Tunnel, targets: []string{"HBONE 127.0.0.5:15008 127.0.0.2:80 [ns.waypoint] waypoint"},
		},
		{
			name: "workload-waypoint-pins-family", dst: "[fd00::2]:80",
			objects: []any{waypointPod, wt.Pod("ns/b", []string{"fd00::2"}, waypointed("/127.0.0.5"))},
			kind:    route.Tunnel, targets: []string{"HBONE 127.0.0.5:15008 [fd00::2]:80 [ns.waypoint] waypoint"},
		},
		{
			name: "workload-waypoint-by-host-adapts-family", dst: "[fd00::2]:80",
			objects: []any{waypointSvc, waypointPod, wt.Pod("ns/b", []string{"fd00::2"}, waypointed("ns/waypoint.com"))},
			kind:    route.Tunnel, targets: []string{"HBONE [fd00::5]:15008 [fd00::2]:80 [ns.waypoint ns.waypoint-san] waypoint"},
		},
		{
			name: "workload-waypoint-unknown", dst: "127.0.0.2:80",
			objects: []any{wt.Pod("ns/b", []string{"127.0.0.2"}, waypointed("ns/waypoint.com"))},
			err:     route.ErrUnknownWaypoint, reason: "unknown waypoint: ns/waypoint.com:15008",
		},
		{
			name: "workload-waypoint-without-endpoints", dst: "127.0.0.2:80",
			objects: []any{waypointSvc, wt.Pod("ns/b", []string{"127.0.0.2"}, waypointed("ns/waypoint.com"))},
			err:     route.ErrUnknownWaypoint, reason: "unknown waypoint: ns/waypoint.com:15008",
		},
		{
			name: "from-waypoint-by-service", src: waypointPod, dst: "127.0.0.2:80",
			objects: []any{waypointSvc, wt.Pod("ns/b", []string{"127.0.0.2"}, waypointed("ns/waypoint.com"))},
			kind:    route.Tunnel, targets: []string{"HBONE 127.0.0.2:15008 127.0.0.2:80 [ns.b]"},
		},
		{
			name: "from-waypoint-by-ip", src: waypointPod, dst: "127.0.0.2:80",
			objects: []any{wt.Pod("ns/b", []string{"127.0.0.2"}, waypointed("/127.0.0.5"))},
			kind:    route.Tunnel, targets: []string{"HBONE 127.0.0.2:15008 127.0.0.2:80 [ns.b]"},
		},
		{
			name: "service-waypoint", dst: "127.0.0.3:80",
			objects: []any{waypointSvc, waypointPod, wt.Service(ex, vip, serviceWaypoint("ns/waypoint.com"))},
			kind:    route.Tunnel, targets: []string{"HBONE 127.0.0.5:15008 127.0.0.3:80 [ns.waypoint ns.waypoint-san] waypoint for example.com"},
		},
		{
			name: "service-waypoint-by-vip", dst: "127.0.0.3:80",
			objects: []any{waypointSvc, waypointPod, wt.Service(ex, vip, serviceWaypoint("/127.0.0.4"))},
			kind:    route.Tunnel, targets: []string{"HBONE 127.0.0.5:15008 127.0.0.3:80 [ns.waypoint ns.waypoint-san] waypoint for example.com"},
		},
		{
			name: "service-waypoint-application-tunnel", dst: "127.0.0.3:80",
			objects: []any{
				wt.Service("ns/waypoint.com", nil, wt.Ports(80, 80)), wt.Pod("ns/waypoint", []string{"127.0.0.5"}, wt.In("ns/waypoint.com"), tunnelled(15088)),
				wt.Service(ex, vip, serviceWaypoint("ns/waypoint.com")),
			},
			kind: route.Tunnel, targets: []string{"HBONE 127.0.0.5:15008 127.0.0.3:80 [ns.waypoint] waypoint for example.com"},
		},
		{
			name: "service-waypoint-without-the-port", dst: "127.0.0.3:80",
			objects: []any{
				wt.Service("ns/waypoint.com", nil, wt.Ports(80, 80)), wt.Pod("ns/waypoint", []string{"127.0.0.5"}, wt.In("ns/waypoint.com")),
				wt.Service(ex, vip, serviceWaypoint("ns/waypoint.com")),
			},
			err: route.ErrUnknownWaypoint,
		},
		{
			name: "service-waypoint-broken", dst: "127.0.0.3:80",
			objects: []any{wt.Service(ex, vip, serviceWaypoint("ns/waypoint.com")), wt.Pod("ns/b", []string{"127.0.0.2"}, inEx)},
			err:     route.ErrUnknownWaypoint, reason: "unknown waypoint: ns/waypoint.com:15008",
		},
		{
			name: "service-ignores-waypoint-of-workload", dst: "127.0.0.3:80",
			objects: []any{waypointSvc, waypointPod, wt.Service(ex, vip), wt.Pod("ns/b", []string{"127.0.0.2"}, inEx, waypointed("ns/waypoint.com"))},
			kind:    route.Tunnel, targets: []string{"HBONE 127.0.0.2:15008 127.0.0.2:8080 [ns.b] for example.com"},
		},
		{
			name: "workload-goes-before-service-for-waypoints", dst: "127.0.0.3:80",
			objects: []any{waypointSvc, waypointPod, wt.Service(ex, vip, serviceWaypoint("ns/waypoint.com")), wt.Pod("ns/b", []string{"127.0.0.3"}, inEx)},
			kind:    route.Tunnel, targets: []string{"HBONE 127.0.0.3:15008 127.0.0.3:8080 [ns.b] for example.com"},
		},
		{
			name: "service-alternative-names", dst: "127.0.0.3:80",
			objects: []any{wt.Service(ex, vip, sans("other/x", "other/y")), wt.Pod("ns/b", []string{"127.0.0.2"}, inEx)},
			kind:    route.Tunnel, targets: []string{"HBONE 127.0.0.2:15008 127.0.0.2:8080 [ns.b other.x other.y] for example.com"},
		},
		{
			name: "empty-service", dst: "127.0.0.3:80", objects: []any{wt.Service(ex, vip)},
			err: route.ErrNoHealthyUpstream, reason: "no healthy upstream: 127.0.0.3:80",
		},
		{
			name: "all-unhealthy", dst: "127.0.0.3:80", objects: []any{wt.Service(ex, vip), wt.Pod("ns/b", []string{"127.0.0.2"}, inEx, wt.Unhealthy)},
			err: route.ErrNoHealthyUpstream,
		},
		{
			name: "no-capacity", dst: "127.0.0.3:80",
			objects: []any{wt.Service(ex, vip), wt.Pod("ns/b", []string{"127.0.0.2"}, inEx, func(w *workload.Workload) { w.Capacity = 0 })},
			err:     route.ErrNoHealthyUpstream,
		},
		{
			name: "unknown-port", dst: "127.0.0.3:81", objects: []any{wt.Service(ex, vip), wt.Pod("ns/b", []string{"127.0.0.2"}, inEx)},
			err: route.ErrNoHealthyUpstream, reason: "no healthy upstream: 127.0.0.3:81",
		},
		{
			name: "numeric-target-port", dst: "127.0.0.3:80", objects: []any{wt.Service(ex, vip, wt.Ports(80, 8085)), wt.Pod("ns/b", []string{"127.0.0.2"}, wt.In(ex))},
			kind: route.Tunnel, targets: []string{"HBONE 127.0.0.2:15008 127.0.0.2:8085 [ns.b] for example.com"},
		},
		{
			name: "endpoint-port-goes-first", dst: "127.0.0.3:80", objects: []any{wt.Service(ex, vip, wt.Ports(80, 8085)), wt.Pod("ns/b", []string{"127.0.0.2"}, wt.In(ex, 80, 9090), wt.Plain)},
			kind: route.TCP, targets: []string{"TCP 127.0.0.2:9090 for example.com"},
		},
		{
			name: "named-target-port", dst: "127.0.0.3:80", objects: []any{wt.Service(ex, vip, wt.Ports(80, 0)), wt.Pod("ns/b", []string{"127.0.0.2"}, wt.In(ex, 80, 9090)), wt.Pod("ns/c", []string{"127.0.0.6"}, wt.In(ex))},
			kind: route.Tunnel, targets: []string{"HBONE 127.0.0.2:15008 127.0.0.2:9090 [ns.b] for example.com"},
		},
		{
			name: "named-target-port-unresolved", dst: "127.0.0.3:80", objects: []any{wt.Service(ex, vip, wt.Ports(80, 0)), wt.Pod("ns/c", []string{"127.0.0.6"}, wt.In(ex), tunnelled(15088))},
			err: route.ErrNoHealthyUpstream,
		},
		{
			name: "host-network-by-ip", dst: "127.0.0.2:80", objects: []any{wt.Pod("ns/b", []string{"127.0.0.2"}, hostNetwork, inEx), wt.Service(ex, vip)},
			kind: route.Passthrough, targets: []string{"TCP 127.0.0.2:80"},
		},
		{
			name: "host-network-by-service", dst: "127.0.0.3:80", objects: []any{wt.Pod("ns/b", []string{"127.0.0.2"}, hostNetwork, inEx), wt.Service(ex, vip)},
			kind: route.Tunnel, targets: []string{"HBONE 127.0.0.2:15008 127.0.0.2:8080 [ns.b] for example.com"},
		},
		{
			name: "dual-stack-by-ipv4-vip", dst: "127.0.0.3:80", objects: []any{wt.Pod("ns/b", []string{"fd00::2", "127.0.0.2"}, inEx), wt.Service(ex, vip)},
			kind: route.Tunnel, targets: []string{"HBONE 127.0.0.2:15008 127.0.0.2:8080 [ns.b] for example.com"},
		},
		{
			name: "dual-stack-by-ipv6-vip", dst: "[fd01::1]:80", objects: []any{wt.Pod("ns/b", []string{"127.0.0.2", "fd00::2"}, inEx), wt.Service(ex, []string{"fd01::1"})},
			kind: route.Tunnel, targets: []string{"HBONE [fd00::2]:15008 [fd00::2]:8080 [ns.b] for example.com"},
		},
		{
			name: "single-stack-crosses-families", dst: "[fd01::1]:80", objects: []any{wt.Pod("ns/b", []string{"127.0.0.2"}, inEx), wt.Service(ex, []string{"fd01::1"})},
			kind: route.Tunnel, targets: []string{"HBONE 127.0.0.2:15008 127.0.0.2:8080 [ns.b] for example.com"},
		},
		{
			name: "service-restricts-families", dst: "127.0.0.3:80", objects: []any{wt.Pod("ns/b", []string{"127.0.0.2", "fd00::2"}, inEx), wt.Service(ex, vip, families(workload.FamiliesIPv6))},
			kind: route.Tunnel, targets: []string{"HBONE [fd00::2]:15008 [fd00::2]:8080 [ns.b] for example.com"},
		},
		{
			name: "service-families-leave-none", dst: "127.0.0.3:80", objects: []any{wt.Pod("ns/b", []string{"127.0.0.2"}, inEx), wt.Service(ex, vip, families(workload.FamiliesIPv6))},
			err: route.ErrNoValidDestination, reason: "no valid routing destination for workload: ns/b",
		},
		{
			name: "passthrough-service", dst: "127.0.0.3:80", objects: []any{wt.Pod("ns/b", []string{"127.0.0.2"}, inEx), wt.Service(ex, vip, wt.Balance(workload.LBPassthrough))},
			kind: route.Passthrough, targets: []string{"TCP 127.0.0.3:80 for example.com"},
		},
		{
			name: "passthrough-service-with-waypoint", dst: "127.0.0.3:80",
			objects: []any{waypointSvc, waypointPod, wt.Service(ex, vip, wt.Balance(workload.LBPassthrough), serviceWaypoint("ns/waypoint.com"))},
			kind:    route.Tunnel, targets: []string{"HBONE 127.0.0.5:15008 127.0.0.3:80 [ns.waypoint ns.waypoint-san] waypoint for example.com"},
		},
		{
			name: "hostname-workload-hbone", dst: "127.0.0.3:80",
			objects: []any{wt.Service(ex, vip), wt.Pod("ns/b", nil, inEx, func(w *workload.Workload) { w.Hostname = "b.example" })},
			kind:    route.Tunnel, targets: []string{"HBONE b.example [ns.b] for example.com"},
		},
		{
			name: "no-address-same-network", dst: "127.0.0.3:80", objects: []any{wt.Service(ex, vip), wt.Pod("ns/b", nil, inEx, behind("/127.0.0.9"))},
			err: route.ErrNoHealthyUpstream,
		},
		{
			name: "remote-without-gateway", dst: "127.0.0.3:80", objects: []any{wt.Service(ex, vip), wt.Pod("ns/b", []string{"10.0.0.2"}, inEx, remote)},
			err: route.ErrNoValidDestination, reason: `no valid routing destination for workload: ns/b is in network "remote", to which no gateway leads`,
		},
		{
			name: "remote-by-gateway-ip", dst: "127.0.0.3:80",
			objects: []any{wt.Service(ex, vip, sans("ns/b")), wt.Pod("ns/b", nil, inEx, remote, behind("remote/10.22.1.1")), gatewayPod},
			kind:    route.Tunnel, targets: []string{"DOUBLEHBONE 10.22.1.1:15009 example.com:80 [ns.gateway] inner[ns.b] for example.com"},
		},
		{
			name: "remote-by-gateway-host", dst: "127.0.0.3:80",
			objects: []any{
				wt.Service(ex, vip), wt.Pod("ns/b", []string{"127.0.0.6"}, inEx, remote, behind("ns/ew-gtw")),
				wt.Service("ns/ew-gtw", []string{"127.0.0.4"}, wt.Ports(15009, 15009), sans("ns/gtw-san")),
				wt.Pod("ns/gateway", []string{"127.0.0.5"}, remote, wt.In("ns/ew-gtw", 15009, 15008)),
			},
			kind: route.Tunnel, targets: []string{"DOUBLEHBONE 127.0.0.5:15008 example.com:80 [ns.gateway ns.gtw-san] inner[] for example.com"},
		},
		{
			name: "remote-gateway-unknown", dst: "127.0.0.3:80",
			objects: []any{wt.Service(ex, vip), wt.Pod("ns/b", nil, inEx, remote, behind("remote/10.22.1.1"))},
			err:     route.ErrUnknownGateway, reason: "unknown network gateway: remote/10.22.1.1:15009",
		},
		{
			name: "remote-endpoints-share-a-gateway", dst: "127.0.0.3:80",
			objects: []any{
				wt.Service(ex, vip), wt.Pod("ns/b", nil, inEx, remote, behind("remote/10.22.1.1")),
				wt.Pod("ns/c", nil, inEx, remote, behind("remote/10.22.1.1")), gatewayPod,
			},
			kind: route.Tunnel, targets: []string{"DOUBLEHBONE 10.22.1.1:15009 example.com:80 [ns.gateway] inner[] for example.com"},
		},
		{
			name: "remote-waypoint", dst: "127.0.0.3:80",
			objects: []any{
				wt.Service(ex, vip, serviceWaypoint("ns/waypoint.com")), waypointSvc,
				wt.Pod("ns/waypoint", nil, wt.In("ns/waypoint.com", 15008, 15008), remote, behind("remote/10.22.1.1")), gatewayPod,
			},
			kind: route.Tunnel, targets: []string{"DOUBLEHBONE 10.22.1.1:15009 example.com:80 [ns.gateway] inner[ns.waypoint-san] for example.com"},
		},
		{
			name: "local-before-remote", dst: "127.0.0.3:80",
			objects: []any{
				wt.Service(ex, vip, wt.Balance(workload.LBFailover, workload.ScopeNetwork)), gatewayPod,
				wt.Pod("ns/a-remote", nil, inEx, remote, behind("remote/10.22.1.1")), wt.Pod("ns/b", []string{"127.0.0.2"}, inEx),
			},
			kind: route.Tunnel,
			targets: []string{
				"HBONE 127.0.0.2:15008 127.0.0.2:8080 [ns.b] for example.com",
				"DOUBLEHBONE 10.22.1.1:15009 example.com:80 [ns.gateway] inner[] for example.com",
			},
		},
		{
			name: "failover-to-remote", dst: "127.0.0.3:80",
			objects: []any{
				wt.Service(ex, vip, wt.Balance(workload.LBFailover, workload.ScopeNetwork)), gatewayPod,
				wt.Pod("ns/a-remote", nil, inEx, remote, behind("remote/10.22.1.1")), wt.Pod("ns/b", []string{"127.0.0.2"}, inEx, wt.Unhealthy),
			},
			kind: route.Tunnel, targets: []string{"DOUBLEHBONE 10.22.1.1:15009 example.com:80 [ns.gateway] inner[] for example.com"},
		},
		{
			name: "tunnel-is-never-followed-by-plain", dst: "127.0.0.3:80",
			objects: []any{wt.Service(ex, vip), wt.Pod("ns/a", []string{"127.0.0.2"}, inEx), wt.Pod("ns/b", []string{"127.0.0.6"}, inEx, wt.Plain)},
			kind:    route.Tunnel, targets: []string{"HBONE 127.0.0.2:15008 127.0.0.2:8080 [ns.a] for example.com"},
		},
		{
			name: "invisible-service", dst: "127.0.0.3:80", objects: []any{wt.Service("other/example.com", vip, wt.Private)},
			kind: route.Passthrough, targets: []string{"TCP 127.0.0.3:80"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			src := tc.src
			if src == nil {
				src = source()
			}
			p := plan(src, tc.dst, tc.objects...)
			var got []string
			for _, target := range p.Targets {
				got = append(got, text(target))
			}
			if p.Kind != tc.kind || !slices.Equal(got, tc.targets) || !errors.Is(p.Err, tc.err) {
				t.Errorf("got  %v %q %v\nwant %v %q %v", p.Kind, got, p.Err, tc.kind, tc.targets, tc.err)
			}
			if tc.reason != "" && p.Reason != tc.reason {
				t.Errorf("reason %q, want %q", p.Reason, tc.reason)
			}
			if (p.Kind == route.Reject) != (p.Err != nil) {
				t.Error("a refusal without reason, or a reason without refusal")
			}
		})
	}
}

// TestFromWaypoint: identity and address must both be the waypoint's.
func TestFromWaypoint(t *testing.T) {
	waypoint := wt.Pod("ns/waypoint", []string{"127.0.0.5"}, wt.In("ns/waypoint.com", 15008, 15008))
	svc := wt.Service("ns/waypoint.com", nil, wt.Ports(15008, 15008))
	dst := wt.Pod("ns/b", []string{"127.0.0.2"}, waypointed("ns/waypoint.com"))
	impostor := wt.Pod("ns/impostor", []string{"127.0.0.7"})
	impostor.ServiceAccount = "waypoint"
	for _, tc := range []struct {
		name   string
		src    *workload.Workload
		ip     string
		direct bool
	}{
		{"waypoint", waypoint, "127.0.0.5", true},
		{"waypoint-mapped", waypoint, "::ffff:127.0.0.5", true},
		{"waypoint-unhealthy", wt.Pod("ns/waypoint", []string{"127.0.0.5"}, wt.In("ns/waypoint.com", 15008, 15008), wt.Unhealthy), "127.0.0.5", true},
		{"other-address", waypoint, "127.0.0.8", false},
		{"same-identity-other-pod", impostor, "127.0.0.7", false},
		{"same-address-other-identity", wt.Pod("ns/a", []string{"127.0.0.1"}), "127.0.0.5", false}, // applications choose their address
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := input(tc.src, "127.0.0.2:80", svc, waypoint, dst, wt.Pod("ns/w2", []string{"127.0.0.6"}, wt.In("ns/waypoint.com", 15008, 15008)), tc.src)
			in.SourceIP = netip.MustParseAddr(tc.ip)
			p := route.Make(in)
			if p.Kind != route.Tunnel || p.Targets[0].Waypoint == tc.direct {
				t.Errorf("%v %s", p.Kind, text(p.Targets[0]))
			}
		})
	}
}

// TestServiceOfAnotherNetworkIsNotPassed: an address of a service in the node's network is none outside of the mesh, although the
// caller's own network has no such service.
func TestServiceOfAnotherNetworkIsNotPassed(t *testing.T) {
	in := input(source(), "127.0.0.3:80", wt.Service("ns/example.com", []string{"remote/127.0.0.3"}, wt.Ports(80, 8080)))
	in.Network = "remote"
	if p := route.Make(in); p.Kind != route.Reject || len(p.Targets) > 0 || !errors.Is(p.Err, route.ErrNoHealthyUpstream) {
		t.Errorf("%v, %d targets, %v", p.Kind, len(p.Targets), p.Err)
	}
}

func TestResolved(t *testing.T) {
	hosted := func(w *workload.Workload) { w.Hostname = "b.example" }
	svc := wt.Service("ns/example.com", []string{"127.0.0.3"})
	svc.IPFamilies = workload.FamiliesIPv4
	in := wt.In("ns/example.com", 80, 8080)
	for _, tc := range []struct {
		name string
		w    *workload.Workload
		want string
	}{
		{"hbone", wt.Pod("ns/b", nil, in, hosted), "HBONE 10.0.0.9:15008 10.0.0.9:8080 [ns.b] for example.com"},
		{"tcp", wt.Pod("ns/b", nil, in, hosted, wt.Plain), "TCP 10.0.0.9:8080 for example.com"},
		{"address-of-other-family", wt.Pod("ns/b", []string{"fd00::1"}, in, hosted, wt.Plain), "TCP 10.0.0.9:8080 for example.com"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var asked netip.AddrPort
			in := input(source(), "127.0.0.3:80", svc, tc.w)
			in.Suspended = func(_ string, addr netip.AddrPort) bool {
				asked = addr
				return false
			}
			planned := route.Make(in).Targets[0]
			resolved := planned.Resolved(netip.MustParseAddr("::ffff:10.0.0.9"))
			if got := text(resolved); got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
			if asked.IsValid() || asked.Port() != planned.DialPort || planned.Endpoint != asked || resolved.Endpoint != asked {
				t.Errorf("suspension was asked about %v; the endpoint is %v, and %v when resolved", asked, planned.Endpoint, resolved.Endpoint)
			}
		})
	}
}

func TestHBONEPort(t *testing.T) {
	in := input(source(), "127.0.0.2:80", wt.Pod("ns/b", []string{"127.0.0.2"}))
	in.HBONEPort = 9999
	if got := route.Make(in).Targets[0].Dial.Port(); got != 9999 {
		t.Errorf("dialled port %d", got)
	}
}

func TestWeightedWaypoints(t *testing.T) {
	weights := func(a, b uint32) func(*workload.Service) {
		return func(s *workload.Service) {
			s.WeightedWaypoints = []workload.WeightedWaypoint{
				{Destination: *wt.Gateway("/127.0.1.1", 15008), Weight: a}, {Destination: *wt.Gateway("/127.0.1.2", 15008), Weight: b},
			}
		}
	}
	pods := []any{
		wt.Pod("ns/single", []string{"127.0.1.0"}), wt.Pod("ns/a", []string{"127.0.1.1"}), wt.Pod("ns/b", []string{"127.0.1.2"}),
	}
	for _, tc := range []struct {
		name string
		mod  func(*workload.Service)
		dice int
		want string
	}{
		{"none", func(*workload.Service) {}, 0, "127.0.1.0:15008"},
		{"first-only", weights(100, 0), 99, "127.0.1.1:15008"},
		{"second-only", weights(0, 100), 0, "127.0.1.2:15008"},
		{"all-zero-falls-back", weights(0, 0), 0, "127.0.1.0:15008"},
		{"share-of-first", weights(75, 25), 74, "127.0.1.1:15008"},
		{"share-of-second", weights(75, 25), 75, "127.0.1.2:15008"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := input(source(), "127.0.0.3:80", append(pods, wt.Service("ns/example.com", []string{"127.0.0.3"}, serviceWaypoint("/127.0.1.0"), tc.mod))...)
			in.Rand = func(n int) int { return tc.dice % n }
			if got := route.Make(in).Targets[0].Dial.String(); got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}
