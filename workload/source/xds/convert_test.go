package xds

import (
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"istio.io/istio/pkg/workloadapi"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
)

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// TestWorkloadRules: each rule of the reference's conversion, by one change to a
// good workload.
func TestWorkloadRules(t *testing.T) {
	tests := []struct {
		name   string
		change func(*workloadapi.Workload)
		want   func(*workload.Workload)
		err    string
	}{
		{"defaults", func(*workloadapi.Workload) {}, func(*workload.Workload) {}, ""},
		{"trust-domain", func(w *workloadapi.Workload) { w.TrustDomain = "td" }, func(w *workload.Workload) { w.TrustDomain = "td" }, ""},
		{"capacity-zero", func(w *workloadapi.Workload) { w.Capacity = wrapperspb.UInt32(0) }, func(w *workload.Workload) { w.Capacity = 0 }, ""},
		{"hbone", func(w *workloadapi.Workload) { w.TunnelProtocol = 1 }, func(w *workload.Workload) { w.Protocol = workload.HBONE }, ""},
		{"legacy-mtls", func(w *workloadapi.Workload) { w.TunnelProtocol = 2 }, nil, "unknown tunnel protocol 2"},
		{"unknown-status", func(w *workloadapi.Workload) { w.Status = 9 }, nil, "unknown status 9"},
		{"unknown-network-mode", func(w *workloadapi.Workload) { w.NetworkMode = -1 }, nil, "unknown network mode -1"},
		{"unknown-workload-type", func(w *workloadapi.Workload) { w.WorkloadType = 9 }, func(*workload.Workload) {}, ""},
		{"job", func(w *workloadapi.Workload) { w.WorkloadType = workloadapi.WorkloadType_JOB }, func(w *workload.Workload) { w.WorkloadType = "job" }, ""},
		{"no-uid", func(w *workloadapi.Workload) { w.Uid = "" }, nil, "workload without uid"},
		{"addresses", func(w *workloadapi.Workload) {
			w.Addresses = [][]byte{{10, 0, 0, 1}, netip.MustParseAddr("fd00::1").AsSlice(), netip.MustParseAddr("::ffff:1.2.3.4").AsSlice(), {0, 0, 0, 0}}
		}, func(w *workload.Workload) {
			for _, a := range []string{"10.0.0.1", "fd00::1", "1.2.3.4", "0.0.0.0"} {
				w.Addresses = append(w.Addresses, netip.MustParseAddr(a))
			}
		}, ""},
		{"empty-address", func(w *workloadapi.Workload) { w.Addresses = [][]byte{{}} }, nil, "address of 0 octets"},
		{"long-address", func(w *workloadapi.Workload) { w.Addresses = [][]byte{make([]byte, 17)} }, nil, "address of 17 octets"},
		{"services", func(w *workloadapi.Workload) {
			w.Services = map[string]*workloadapi.PortList{"ns/a.b": {Ports: []*workloadapi.Port{{ServicePort: 80, TargetPort: 8080}}}, "ns/c": nil}
		}, func(w *workload.Workload) {
			w.Services = map[workload.NamespacedHostname]workload.PortMap{
				{Namespace: "ns", Hostname: "a.b"}: {80: 8080}, {Namespace: "ns", Hostname: "c"}: {},
			}
		}, ""},
		{"service-key", func(w *workloadapi.Workload) { w.Services = map[string]*workloadapi.PortList{"a": nil} }, nil,
			`parse namespaced hostname "a": want namespace/hostname`},
		{"service-port", func(w *workloadapi.Workload) {
			w.Services = map[string]*workloadapi.PortList{"a/b": {Ports: []*workloadapi.Port{{ServicePort: 70000}}}}
		}, nil, "service a/b: port 70000 with target 0"},
		{"waypoint-by-address", func(w *workloadapi.Workload) {
			w.Waypoint = &workloadapi.GatewayAddress{HboneMtlsPort: 65536 + 15008, Destination: &workloadapi.GatewayAddress_Address{
				Address: &workloadapi.NetworkAddress{Network: "n", Address: []byte{10, 0, 0, 1}},
			}}
		}, func(w *workload.Workload) {
			w.Waypoint = &workload.GatewayAddress{HBONEPort: 15008, Address: workload.NetworkAddress{Network: "n", Addr: netip.MustParseAddr("10.0.0.1")}}
		}, ""},
		{"waypoint-without-destination", func(w *workloadapi.Workload) { w.Waypoint = &workloadapi.GatewayAddress{} }, nil,
			"waypoint: gateway without destination"},
		{"network-gateway-with-bad-address", func(w *workloadapi.Workload) {
			w.NetworkGateway = &workloadapi.GatewayAddress{Destination: &workloadapi.GatewayAddress_Address{}}
		}, nil, "network gateway: gateway: address of 0 octets"},
		{"application-tunnel", func(w *workloadapi.Workload) {
			w.ApplicationTunnel = &workloadapi.ApplicationTunnel{Protocol: workloadapi.ApplicationTunnel_PROXY}
		}, func(w *workload.Workload) {
			w.ApplicationTunnel = &workload.ApplicationTunnel{Protocol: workload.TunnelProxy}
		}, ""},
		{"unknown-application-tunnel", func(w *workloadapi.Workload) {
			w.ApplicationTunnel = &workloadapi.ApplicationTunnel{Protocol: 7}
		}, nil, "unknown application tunnel protocol 7"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := &workloadapi.Workload{Uid: "u"}
			tt.change(in)
			got, err := toWorkload(in)
			if text(err) != tt.err {
				t.Fatalf("error is %q, want %q", text(err), tt.err)
			}
			if err != nil {
				return
			}
			want := &workload.Workload{
				UID: "u", TrustDomain: "cluster.local", ServiceAccount: "default", ClusterID: "Kubernetes", Capacity: 1, WorkloadType: "deployment",
			}
			tt.want(want)
			if !got.Equal(want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

func TestServiceRules(t *testing.T) {
	bits := func(n uint32) *uint32 { return &n }
	v4, v6 := []byte{10, 0, 0, 1}, netip.MustParseAddr("fd00::1").AsSlice()
	vip := func(ip string) []workload.NetworkAddress {
		return []workload.NetworkAddress{{Network: "n", Addr: netip.MustParseAddr(ip)}}
	}
	prefix := func(p string) []workload.NetworkPrefix {
		return []workload.NetworkPrefix{{Network: "n", Prefix: netip.MustParsePrefix(p)}}
	}
	address := func(b []byte, length *uint32) func(*workloadapi.Service) {
		return func(s *workloadapi.Service) {
			s.Addresses = []*workloadapi.NetworkAddress{{Network: "n", Address: b, Length: length}}
		}
	}
	lb := func(lb *workloadapi.LoadBalancing) func(*workloadapi.Service) {
		return func(s *workloadapi.Service) { s.LoadBalancing = lb }
	}
	type change = func(*workload.Service)
	tests := []struct {
		name   string
		change func(*workloadapi.Service)
		want   change
		err    string
	}{
		{"plain", func(*workloadapi.Service) {}, func(*workload.Service) {}, ""},
		{"no-hostname", func(s *workloadapi.Service) { s.Hostname = "" }, nil, "service without hostname"},
		{"vip", address(v4, nil), func(s *workload.Service) { s.VIPs = vip("10.0.0.1") }, ""},
		{"vip-32", address(v4, bits(32)), func(s *workload.Service) { s.VIPs = vip("10.0.0.1") }, ""},
		{"vip-128", address(v6, bits(128)), func(s *workload.Service) { s.VIPs = vip("fd00::1") }, ""},
		{"prefix", address(v4, bits(16)), func(s *workload.Service) { s.CIDRVIPs = prefix("10.0.0.0/16") }, ""},
		{"prefix-of-ipv6-with-32-bits", address(v6, bits(32)), func(s *workload.Service) { s.CIDRVIPs = prefix("fd00::/32") }, ""},
		{"prefix-zero", address(v4, bits(0)), func(s *workload.Service) { s.CIDRVIPs = prefix("0.0.0.0/0") }, ""},
		{"prefix-too-long", address(v4, bits(33)), nil, "prefix length 33 of 10.0.0.1"},
		{"prefix-of-mapped", address(netip.MustParseAddr("::ffff:10.0.0.1").AsSlice(), bits(112)), func(s *workload.Service) { s.CIDRVIPs = prefix("10.0.0.0/16") }, ""},
		{"bad-address", address([]byte{1}, nil), nil, "address of 1 octets"},
		{"private", func(s *workloadapi.Service) { s.Visibility = 1 }, func(s *workload.Service) { s.Visibility = workload.VisibilityNamespace }, ""},
		{"unknown-visibility", func(s *workloadapi.Service) { s.Visibility = 99 }, func(*workload.Service) {}, ""},
		{"unknown-families", func(s *workloadapi.Service) { s.IpFamilies = 99 }, nil, "unknown ip families 99"},
		{"unspecified-scope", lb(&workloadapi.LoadBalancing{RoutingPreference: []workloadapi.LoadBalancing_Scope{0}}), nil, "routing preference without a scope"},
		{"unknown-scope", lb(&workloadapi.LoadBalancing{RoutingPreference: []workloadapi.LoadBalancing_Scope{7}}), nil, "unknown routing preference 7"},
		{"unknown-mode", lb(&workloadapi.LoadBalancing{Mode: 9}), nil, "unknown load balancing mode 9"},
		{"unknown-health-policy", lb(&workloadapi.LoadBalancing{HealthPolicy: 9}), nil, "unknown health policy 9"},
		{"unspecified-mode", lb(&workloadapi.LoadBalancing{}), func(s *workload.Service) { s.LoadBalancer = &workload.LoadBalancer{} }, ""},
		{"weighted-waypoint-without-destination", func(s *workloadapi.Service) {
			s.WeightedWaypoints = []*workloadapi.WeightedWaypoint{{Weight: 1}}
		}, nil, "weighted waypoint without destination"},
		{"ports", func(s *workloadapi.Service) {
			s.Ports = []*workloadapi.Port{{ServicePort: 80}, {ServicePort: 443, TargetPort: 8443}}
		}, func(s *workload.Service) { s.Ports = workload.PortMap{80: 0, 443: 8443} }, ""},
		{"port-too-large", func(s *workloadapi.Service) { s.Ports = []*workloadapi.Port{{TargetPort: 65536}} }, nil, "port 0 with target 65536"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := &workloadapi.Service{Name: "n", Namespace: "ns", Hostname: "h"}
			tt.change(in)
			got, _, err := toService(in)
			if text(err) != tt.err {
				t.Fatalf("error is %q, want %q", text(err), tt.err)
			}
			if err != nil {
				return
			}
			want := &workload.Service{Name: "n", Namespace: "ns", Hostname: "h"}
			tt.want(want)
			if !got.Equal(want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

// TestBadAlternativeName: it is left out with a warning, the service stays.
func TestBadAlternativeName(t *testing.T) {
	var log strings.Builder
	c := &Client{cfg: Config{Logger: slog.New(slog.NewTextHandler(&log, nil))}}
	packed, err := anypb.New(&workloadapi.Address{Type: &workloadapi.Address_Service{Service: &workloadapi.Service{
		Namespace: "ns", Hostname: "h", SubjectAltNames: []string{"spiffe://td/ns/a/sa/b", "example.com"},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	e, key, err := c.address(&discovery.Resource{Name: "ns/h", Resource: packed})
	if err != nil || key != "ns/h" || len(e.Service.SubjectAltNames) != 1 {
		t.Errorf("service is %v under %q, %v", e.Service, key, err)
	}
	if !strings.Contains(log.String(), "name=example.com") {
		t.Errorf("log is %q", log.String())
	}
}

func TestAddressWithoutContent(t *testing.T) {
	c := &Client{cfg: Config{Logger: slog.New(slog.DiscardHandler)}}
	for _, tt := range []struct {
		res  *discovery.Resource
		want string
	}{
		{&discovery.Resource{Name: "x"}, "payload without resource"},
		{&discovery.Resource{Name: "x", Resource: new(anypb.Any)}, "address is neither workload nor service"},
	} {
		if _, _, err := c.address(tt.res); text(err) != tt.want {
			t.Errorf("error is %q, want %q", text(err), tt.want)
		}
	}
}

// FuzzAddress: whatever octets a server sends, the client does not fall, and what
// it takes has a key.
func FuzzAddress(f *testing.F) {
	for _, a := range []*workloadapi.Address{
		{Type: &workloadapi.Address_Workload{Workload: &workloadapi.Workload{Uid: "u", Addresses: [][]byte{{1, 2, 3, 4}}, Services: map[string]*workloadapi.PortList{"a/b": {}}}}},
		{Type: &workloadapi.Address_Service{Service: &workloadapi.Service{Hostname: "h", Addresses: []*workloadapi.NetworkAddress{{Address: []byte{1, 2, 3, 4}}}}}},
	} {
		b, err := proto.Marshal(a)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	c := &Client{cfg: Config{Logger: slog.New(slog.DiscardHandler)}}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, key, err := c.address(&discovery.Resource{Name: "n", Resource: &anypb.Any{Value: b}})
		if err == nil && (key == "" || e.Workload == nil && e.Service == nil) {
			t.Errorf("taken without a key: %+v", e)
		}
		store := workload.New()
		store.Apply([]workload.Event{e})
	})
}

// FuzzAuthorization: whatever octets a server sends under a name, there is a
// policy afterwards, and one that was rejected denies.
func FuzzAuthorization(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0xff})
	f.Add([]byte{0x0a, 1, 'n', 0x12, 2, 'n', 's', 0x20, 9})
	f.Fuzz(func(t *testing.T, b []byte) {
		set := policy.New()
		c := &Client{cfg: Config{Policies: set, Logger: slog.New(slog.DiscardHandler)}}
		p, err := c.policy(&discovery.Resource{Name: "ns/name", Resource: &anypb.Any{Value: b}})
		if p == nil {
			t.Fatalf("no policy: %v", err)
		}
		if err != nil && p.Validate() == nil {
			t.Errorf("rejected with %v, but the policy is sound: %+v", err, p)
		}
		set.Apply([]*policy.Policy{p}, nil)
		if set.Snapshot().Policy(p.Key()) == nil {
			t.Error(errors.New("policy is not held"))
		}
	})
}
