package route_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/egress"
	"github.com/culvert-mesh/culvert/workload/route"
	wt "github.com/culvert-mesh/culvert/workload/workloadtest"
)

// external makes a workload one that only a ServiceEntry names.
func external(w *workload.Workload) {
	w.UID = "cluster1/networking.istio.io/ServiceEntry/" + w.Namespace + "/" + w.Name + "/address"
	w.Protocol = workload.TCP
}

// slice makes a workload one that only an EndpointSlice names, as sources make it.
func slice(w *workload.Workload) {
	w.UID = "cluster1/discovery.k8s.io/EndpointSlice/" + w.Namespace + "/" + w.Name + "/address"
	w.Protocol, w.NetworkMode = workload.TCP, workload.HostNetwork
}

func TestRegistered(t *testing.T) {
	original := wt.Balance(workload.LBPassthrough)
	for _, tc := range []struct {
		name, dst string
		objects   []any
		want      bool
		kind      route.Kind // with REGISTRY_ONLY
	}{
		{"nothing", "192.0.2.1:80", nil, false, route.Reject},
		{"pod", "10.0.0.2:1234", []any{wt.Pod("other/web", []string{"10.0.0.2"})}, true, route.Tunnel},
		{"pod-outside-of-the-mesh", "10.0.0.2:1234", []any{wt.Pod("other/web", []string{"10.0.0.2"}, wt.Plain)}, true, route.TCP},
		{"pod-of-another-network", "10.0.0.2:80", []any{wt.Pod("other/web", []string{"10.0.0.2"}, wt.Network("far"))}, false, route.Reject},
		{"mapped", "[::ffff:10.0.0.2]:80", []any{wt.Pod("other/web", []string{"10.0.0.2"})}, true, route.Tunnel},
		{"itself", "127.0.0.10:80", nil, true, route.Tunnel},
		{"service", "10.1.0.1:80", []any{wt.Service("ns/web", []string{"10.1.0.1"}), wt.Pod("ns/web", []string{"10.0.0.2"}, wt.In("ns/web"))}, true, route.Tunnel},
		{"service-without-endpoint", "10.1.0.1:80", []any{wt.Service("ns/web", []string{"10.1.0.1"})}, true, route.Reject},
		{"service-port-unknown", "10.1.0.1:81", []any{wt.Service("ns/web", []string{"10.1.0.1"}), wt.Pod("ns/web", []string{"10.0.0.2"}, wt.In("ns/web"))}, true, route.Reject},
		{"public-of-others", "10.1.0.1:80", []any{wt.Service("other/x.example.com", []string{"10.1.0.1"}, original)}, true, route.Passthrough},
		{"private-of-others", "10.1.0.1:80", []any{wt.Service("other/x.example.com", []string{"10.1.0.1"}, original, wt.Private)}, false, route.Reject},
		{"original-destination", "198.51.100.7:80", []any{wt.Service("ns/x.example.com", []string{"/198.51.100.0/24"}, original)}, true, route.Passthrough},
		{"original-destination-other-port", "198.51.100.7:81", []any{wt.Service("ns/x.example.com", []string{"/198.51.100.0/24"}, original)}, false, route.Reject},
		{"original-destination-beside", "198.51.101.7:80", []any{wt.Service("ns/x.example.com", []string{"/198.51.100.0/24"}, original)}, false, route.Reject},
		{"original-destination-second-entry", "198.51.100.7:443", []any{
			wt.Service("ns/a.example.com", []string{"/198.51.100.0/24"}, original),
			wt.Service("ns/b.example.com", []string{"/198.51.100.0/24"}, original, wt.Ports(443, 443)),
		}, true, route.Passthrough},
		{"endpoint", "192.0.2.9:8080", []any{
			wt.Service("ns/x.example.com", []string{"10.1.0.1"}), wt.Pod("ns/x", []string{"192.0.2.9"}, external, wt.In("ns/x.example.com")),
		}, true, route.TCP},
		{"endpoint-own-target", "192.0.2.9:9090", []any{
			wt.Service("ns/x.example.com", []string{"10.1.0.1"}), wt.Pod("ns/x", []string{"192.0.2.9"}, external, wt.In("ns/x.example.com", 80, 9090)),
		}, true, route.TCP},
		{"endpoint-service-port", "192.0.2.9:80", []any{
			wt.Service("ns/x.example.com", []string{"10.1.0.1"}), wt.Pod("ns/x", []string{"192.0.2.9"}, external, wt.In("ns/x.example.com")),
		}, false, route.Reject},
		{"endpoint-of-private", "192.0.2.9:8080", []any{
			wt.Service("other/x.example.com", []string{"10.1.0.1"}, wt.Private), wt.Pod("other/x", []string{"192.0.2.9"}, external, wt.In("other/x.example.com")),
		}, false, route.Reject},
		{"endpoint-of-a-slice", "192.0.2.9:6443", []any{
			wt.Service("default/kubernetes", []string{"10.1.0.1"}, wt.Ports(443, 6443)), wt.Pod("default/kubernetes", []string{"192.0.2.9"}, slice, wt.In("default/kubernetes")),
		}, true, route.Passthrough},
		{"endpoint-of-two", "192.0.2.9:8080", []any{
			wt.Service("ns/x.example.com", []string{"10.1.0.1"}), wt.Pod("ns/x", []string{"192.0.2.9"}, external, wt.In("ns/x.example.com")),
			wt.Service("a/y.example.com", []string{"10.1.0.2"}, wt.Ports(443, 443)), wt.Pod("a/y", []string{"192.0.2.9"}, external, wt.In("a/y.example.com", 443, 443)),
		}, true, route.TCP},
		{"endpoint-of-a-slice-other-port", "192.0.2.9:22", []any{
			wt.Service("default/kubernetes", []string{"10.1.0.1"}, wt.Ports(443, 6443)), wt.Pod("default/kubernetes", []string{"192.0.2.9"}, slice, wt.In("default/kubernetes")),
		}, false, route.Reject},
		{"endpoint-of-nothing", "192.0.2.9:8080", []any{wt.Pod("ns/x", []string{"192.0.2.9"}, external)}, false, route.Reject},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := input(source(), tc.dst, tc.objects...)
			if got := route.Registered(in); got != tc.want {
				t.Errorf("registered: %t, want %t", got, tc.want)
			}
			in.Outbound = egress.RegistryOnly
			p := route.Make(in)
			if p.Kind != tc.kind {
				t.Errorf("plan: %s (%s), want %s", p.Kind, p.Reason, tc.kind)
			}
			if refused := errors.Is(p.Err, route.ErrNotRegistered); refused == tc.want {
				t.Errorf("refused for %v", p.Err)
			} else if refused && (!strings.Contains(p.Reason, "REGISTRY_ONLY") || len(p.Targets) > 0) {
				t.Errorf("plan: %+v", p)
			}
			in.Outbound = egress.AllowAny
			if p := route.Make(in); errors.Is(p.Err, route.ErrNotRegistered) {
				t.Errorf("refused although anything is allowed: %s", p.Reason)
			}
		})
	}
}

// A range that somebody writes down takes neither pods nor services out of
// their tunnels.
func TestRangeTakesNobody(t *testing.T) {
	all := wt.Service("ns/all.example.com", []string{"/0.0.0.0/0"}, wt.Balance(workload.LBPassthrough))
	web := wt.Service("other/web", []string{"10.1.0.1"})
	pod := wt.Pod("other/web", []string{"10.0.0.2"}, wt.In("other/web"))
	// Endpoints inside of the range that leads to them are found by it.
	static := wt.Service("ns/static.example.com", []string{"/198.51.100.0/24"})
	endpoint := wt.Pod("ns/static", []string{"198.51.100.7"}, external, wt.In("ns/static.example.com"))
	for dst, want := range map[string]string{
		"10.0.0.2:8080": "HBONE 10.0.0.2:15008 10.0.0.2:8080 [other.web]",
		"10.1.0.1:80":   "HBONE 10.0.0.2:15008 10.0.0.2:8080 [other.web] for web",
		"192.0.2.1:80":  "TCP 192.0.2.1:80 for all.example.com",

		"198.51.100.7:80": "TCP 198.51.100.7:8080 for static.example.com",
	} {
		p := plan(source(), dst, all, web, pod, static, endpoint)
		if len(p.Targets) != 1 || text(p.Targets[0]) != want {
			t.Errorf("%s: %s %s %v, want %s", dst, p.Kind, p.Reason, p.Targets, want)
		}
	}
}
