package dns_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/dns"
)

func addrs(ss ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range ss {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// service makes a public service; vips are "network/ip".
func service(namespace, hostname string, vips ...string) *workload.Service {
	s := &workload.Service{Name: hostname, Namespace: namespace, Hostname: hostname, Ports: workload.PortMap{80: 80}}
	for _, v := range vips {
		a, err := workload.ParseNetworkAddress(v)
		if err != nil {
			panic(err)
		}
		s.VIPs = append(s.VIPs, a)
	}
	return s
}

func kube(name, namespace string, vips ...string) *workload.Service {
	return service(namespace, name+"."+namespace+".svc.cluster.local", vips...)
}

func with(s *workload.Service, change func(*workload.Service)) *workload.Service {
	change(s)
	return s
}

func canonical(s *workload.Service) { s.Canonical = true }
func private(s *workload.Service)   { s.Visibility = workload.VisibilityNamespace }

func endpoint(uid, host string, health workload.Health, ips ...string) *workload.Workload {
	key := workload.NamespacedHostname{Namespace: "ns1", Hostname: host}
	return &workload.Workload{
		UID: uid, Name: uid, Namespace: "ns1", Network: "nw1", Addresses: addrs(ips...), Health: health, Capacity: 1,
		Services: map[workload.NamespacedHostname]workload.PortMap{key: {80: 80}},
	}
}

// testStore holds what the reference's DNS tests hold; the client is in ns1 on nw1.
func testStore() *workload.Store {
	store := workload.New()
	store.Replace([]*workload.Workload{
		endpoint("headless0", "headless.ns1.svc.cluster.local", workload.Healthy, "30.30.30.30", "2001:db8::30"),
		endpoint("headless1", "headless.ns1.svc.cluster.local", workload.Healthy, "31.31.31.31", "2001:db8::31", "31.31.31.99"),
		endpoint("headless2", "headless.ns1.svc.cluster.local", workload.Unhealthy, "32.32.32.32"),
		endpoint("external", "headless.example.com", workload.Healthy, "32.32.32.32", "2001:db8::32"),
		endpoint("six", "headless-ipv6.ns1.svc.cluster.local", workload.Healthy, "33.33.33.33", "2001:db8::33"),
		endpoint("none", "no-address.ns1.svc.cluster.local", workload.Healthy),
	}, []*workload.Service{
		service("ns1", "www.google.com", "nw1/1.1.1.1"),
		kube("productpage", "ns1", "nw1/9.9.9.9"),
		kube("example", "ns2", "nw1/10.10.10.10"),
		with(kube("nslocal", "ns2", "nw1/10.10.10.240"), private),
		with(kube("nslocalsame", "ns1", "nw1/10.10.10.241"), private),
		service("ns2", "everywhere.io", "nw1/10.10.10.110"),
		service("ns2", "preferred.io", "nw1/10.10.10.210"),
		service("preferred-ns", "everywhere.io", "nw1/10.10.10.111"),
		service("preferred-ns", "preferred.io", "nw1/10.10.10.211"),
		service("ns1", "everywhere.io", "nw1/10.10.10.112"),
		service("ns2", "canonical.svc", "nw1/10.10.10.140"),
		with(service("ns3", "canonical.svc", "nw1/10.10.10.141"), canonical),
		service("ns1", "canonical.with.local", "nw1/10.10.10.150"),
		with(service("ns2", "canonical.with.local", "nw1/10.10.10.151"), canonical),
		service("preferred-ns", "canonical.over.preferred", "nw1/10.10.10.160"),
		with(service("ns0", "canonical.over.preferred", "nw1/10.10.10.161"), canonical),
		service("ns2", "details.ns2.svc.cluster.remote",
			"nw1/11.11.11.11", "nw1/12.12.12.12", "nw1/13.13.13.13", "nw1/14.14.14.14"),
		service("ns1", "ipv4.localhost", "nw1/2.2.2.2"),
		service("ns1", "ipv6.localhost", "nw1/2001:db8::ff00:42:8329"),
		service("ns1", "dual.localhost", "nw1/2.2.2.2", "nw1/2001:db8::ff00:42:8329"),
		service("ns1", "*.wildcard", "nw1/10.10.10.10"),
		service("ns1", "*.b.wildcard", "nw1/11.11.11.11"),
		service("ns1", "*.svc.mesh.company.net", "nw1/10.1.2.3"),
		kube("nw2-only", "ns1", "nw2/20.20.20.20"),
		kube("both-networks", "ns1", "nw1/21.21.21.21", "nw2/22.22.22.22"),
		kube("headless", "ns1"),
		kube("no-address", "ns1"),
		service("ns1", "headless.example.com"),
		service("ns1", "headless-no-endpoints.example.com"),
		with(kube("headless-ipv6", "ns1"), func(s *workload.Service) { s.IPFamilies = workload.FamiliesIPv6 }),
		with(service("ns1", "ranges.example.com"), func(s *workload.Service) {
			s.CIDRVIPs = []workload.NetworkPrefix{{Network: "nw1", Prefix: netip.MustParsePrefix("10.99.0.0/16")}}
		}),
	})
	return store
}

func TestResolve(t *testing.T) {
	const a, aaaa = dns.TypeA, dns.TypeAAAA
	forward := dns.Answer{Outcome: dns.Forward}
	noData := dns.Answer{Outcome: dns.NoData}
	found := func(canonical string, ips ...string) dns.Answer {
		return dns.Answer{Outcome: dns.Addresses, Canonical: canonical, Addrs: addrs(ips...)}
	}
	tests := []struct {
		name  string
		host  string
		qtype uint16
		want  dns.Answer
	}{
		{"other-type-is-forwarded", "productpage.ns1.", 2, forward},
		{"external-host", "www.google.com", a, found("", "1.1.1.1")},
		{"external-host-with-search-domain", "www.google.com.ns1.svc.cluster.local.", a, found("www.google.com.", "1.1.1.1")},
		{"unknown-host", "www.bing.com", a, forward},
		{"root", ".", a, forward},
		{"escaped-dot", `productpage\.ns1.svc.cluster.local.`, a, forward},
		{"fqdn", "productpage.ns1.svc.cluster.local.", a, found("", "9.9.9.9")},
		{"fqdn-in-capitals", "ProductPage.NS1.svc.cluster.LOCAL.", a, found("", "9.9.9.9")},
		{"name-namespace", "productpage.ns1.", a, found("", "9.9.9.9")},
		{"short-name", "productpage.", a, found("", "9.9.9.9")},
		{"name-namespace-with-search-domain", "productpage.ns1.ns1.svc.cluster.local.", a, found("productpage.ns1.", "9.9.9.9")},
		{"aaaa-of-ipv4-only-with-search-domain", "productpage.ns1.ns1.svc.cluster.local.", aaaa, noData},
		{"other-namespace-name-namespace", "example.ns2.", a, found("", "10.10.10.10")},
		{"other-namespace-fqdn", "example.ns2.svc.cluster.local.", a, found("", "10.10.10.10")},
		{"other-namespace-name-namespace-svc", "example.ns2.svc.", a, found("", "10.10.10.10")},
		{"other-namespace-short-name", "example.", a, forward},
		{"private-of-other-namespace", "nslocal.ns2.svc.cluster.local.", a, forward},
		{"private-of-own-namespace", "nslocalsame.ns1.svc.cluster.local.", a, found("", "10.10.10.241")},
		{"remote-domain-fqdn", "details.ns2.svc.cluster.remote.", a,
			found("", "11.11.11.11", "12.12.12.12", "13.13.13.13", "14.14.14.14")},
		{"remote-domain-short", "details.ns2.", a, forward},
		{"dual-a", "dual.localhost.", a, found("", "2.2.2.2")},
		{"dual-aaaa", "dual.localhost.", aaaa, found("", "2001:db8::ff00:42:8329")},
		{"a-of-ipv6-only", "ipv6.localhost.", a, noData},
		{"aaaa-of-ipv4-only", "ipv4.localhost.", aaaa, noData},
		{"wildcard", "foo.wildcard.", a, found("", "10.10.10.10")},
		{"wildcard-specific", "a.b.wildcard.", a, found("", "11.11.11.11")},
		{"escaped-dot-below-wildcard", `a\.b.wildcard.`, a, forward},
		{"wildcard-itself-is-no-match-for-its-parent", "wildcard.", a, forward},
		{"wildcard-domain", "foo.svc.mesh.company.net.", a, found("", "10.1.2.3")},
		{"wildcard-namespace-domain", "foo.foons.svc.mesh.company.net.", a, found("", "10.1.2.3")},
		{"wildcard-with-search-domain-has-no-cname", "foo.svc.mesh.company.net.ns1.svc.cluster.local.", a, found("", "10.1.2.3")},
		{"vip-on-other-network", "nw2-only.ns1.svc.cluster.local.", a, noData},
		{"vips-on-both-networks", "both-networks.ns1.svc.cluster.local.", a, found("", "21.21.21.21")},
		{"headless-a", "headless.ns1.svc.cluster.local.", a, found("", "30.30.30.30", "31.31.31.31")},
		{"headless-aaaa", "headless.ns1.svc.cluster.local.", aaaa, found("", "2001:db8::30", "2001:db8::31")},
		{"headless-without-address", "no-address.ns1.svc.cluster.local.", a, noData},
		{"headless-ipv6-aaaa", "headless-ipv6.ns1.svc.cluster.local.", aaaa, found("", "2001:db8::33")},
		{"headless-ipv6-a", "headless-ipv6.ns1.svc.cluster.local.", a, noData},
		{"pod-fqdn", "headless.pod0.ns1.svc.cluster.local.", a, forward},
		{"pod-short", "headless.pod0.ns1.", a, forward},
		{"external-headless", "headless.example.com", a, forward},
		{"external-headless-without-endpoints", "headless-no-endpoints.example.com", a, forward},
		{"only-prefixes", "ranges.example.com", a, forward},
		{"preferred-namespace", "preferred.io.", a, found("", "10.10.10.211")},
		{"own-over-preferred", "everywhere.io.", a, found("", "10.10.10.112")},
		{"canonical", "canonical.svc", a, found("", "10.10.10.141")},
		{"own-over-canonical", "canonical.with.local", a, found("", "10.10.10.150")},
		{"canonical-over-preferred", "canonical.over.preferred", a, found("", "10.10.10.161")},
	}
	r, err := dns.New(dns.Config{PreferredNamespace: "preferred-ns"})
	if err != nil {
		t.Fatal(err)
	}
	snap := testStore().Snapshot()
	client := dns.Client{Namespace: "ns1", Network: "nw1"}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := r.Resolve(snap, client, tt.host, tt.qtype)
			if (got.Service == nil) != (got.Outcome == dns.Forward) || got.Reason == "" {
				t.Errorf("outcome %v with service %v, reason %q", got.Outcome, got.Service, got.Reason)
			}
			slices.SortFunc(got.Addrs, netip.Addr.Compare)
			opts := cmp.Options{
				cmpopts.IgnoreFields(dns.Answer{}, "Service", "Reason"),
				cmp.Comparer(func(x, y netip.Addr) bool { return x == y }),
			}
			if d := cmp.Diff(tt.want, got, opts); d != "" {
				t.Errorf("Resolve(%q) (-want +got):\n%s", tt.host, d)
			}
		})
	}
}

// What a ServiceEntry of another namespace calls itself takes no name of a Service, in whatever way clients write that.
func TestServiceGoesBeforeEntriesOfOthers(t *testing.T) {
	r, err := dns.New(dns.Config{})
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"*.local", "*.cluster.local", "*.svc.cluster.local", "*.client.svc.cluster.local", "*.shop", "web.shop", "web.shop.svc", "web.shop.client.svc.cluster.local"} {
		entry := with(service("evil", host, "nw1/6.6.6.6"), canonical)
		store := workload.New()
		store.Replace(nil, []*workload.Service{with(kube("web", "shop", "nw1/10.0.0.1"), canonical), entry})
		// As resolvers ask that have ndots:5, and as those that do not.
		for _, name := range []string{
			"web.shop.client.svc.cluster.local.", "web.shop.svc.client.svc.cluster.local.", "web.shop.svc.cluster.local.client.svc.cluster.local.",
			"web.shop.", "web.shop.svc.", "web.shop.svc.cluster.local.",
		} {
			got := r.Resolve(store.Snapshot(), dns.Client{Namespace: "client", Network: "nw1"}, name, dns.TypeA)
			if want := addrs("10.0.0.1"); !slices.Equal(got.Addrs, want) {
				t.Errorf("beside an entry for %s, %s is %v, want %v", host, name, got.Addrs, want)
			}
		}
		// The client's own namespace says what it likes.
		entry.Namespace = "client"
		store.Replace(nil, []*workload.Service{with(kube("web", "shop", "nw1/10.0.0.1"), canonical), entry})
		if got := r.Resolve(store.Snapshot(), dns.Client{Namespace: "client", Network: "nw1"}, strings.Replace(host, "*", "other", 1), dns.TypeA); !slices.Equal(got.Addrs, addrs("6.6.6.6")) {
			t.Errorf("%s of the own namespace is %v", host, got.Addrs)
		}
	}
}

// TestFirstMatchCounts: among services of other namespaces, the name itself goes before stars, and a longer name under a star
// before a shorter one, also when a search domain has to go first.
func TestFirstMatchCounts(t *testing.T) {
	r, err := dns.New(dns.Config{})
	if err != nil {
		t.Fatal(err)
	}
	store := workload.New()
	store.Replace(nil, []*workload.Service{
		service("one", "www.shop.example", "nw1/10.0.0.1"), service("two", "*.shop.example", "nw1/10.0.0.2"),
		service("three", "*.example", "nw1/10.0.0.3"),
	})
	for name, ip := range map[string]string{
		"www.shop.example.": "10.0.0.1", "api.shop.example.": "10.0.0.2", "shop.example.": "10.0.0.3",
		"www.shop.example.client.svc.cluster.local.": "10.0.0.1",
	} {
		got := r.Resolve(store.Snapshot(), dns.Client{Namespace: "client", Network: "nw1"}, name, dns.TypeA)
		if want := addrs(ip); !slices.Equal(got.Addrs, want) {
			t.Errorf("%s is %v, want %v", name, got.Addrs, want)
		}
	}
}

// The name of a pod behind a Service (Kubernetes DNS specification, 2.4) is for the cluster's DNS, whatever there is elsewhere:
// kafka-0.kafka.shop.svc.cluster.local is no Service kafka-0 of namespace kafka.
func TestNameOfPod(t *testing.T) {
	r, err := dns.New(dns.Config{})
	if err != nil {
		t.Fatal(err)
	}
	resolve := func(client, name string, others ...*workload.Service) []netip.Addr {
		store := workload.New()
		store.Replace(nil, append(others, kube("kafka", "shop"), kube("kafka-0", "kafka", "nw1/10.0.0.1"), kube("db", "prod", "nw1/10.0.0.2")))
		return r.Resolve(store.Snapshot(), dns.Client{Namespace: client, Network: "nw1"}, name, dns.TypeA).Addrs
	}
	const pod, step = "kafka-0.kafka.shop.svc.cluster.local.", "kafka-0.kafka.svc.cluster.local."
	tests := []struct {
		name         string
		client, host string
		want         []netip.Addr
	}{
		{"pod", "shop", pod, nil},
		{"pod-of-other-namespace", "kafka", pod, nil},
		{"service", "shop", step, addrs("10.0.0.1")}, // the next step along the search path for kafka-0.kafka
		{"service-short", "shop", "kafka-0.kafka.", addrs("10.0.0.1")},
		{"first-step-where-no-service-is-called-so", "web", "kafka-0.kafka.web.svc.cluster.local.", addrs("10.0.0.1")},
		{"first-step-of-other-service", "shop", "db.prod.shop.svc.cluster.local.", addrs("10.0.0.2")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := resolve(tt.client, tt.host); !slices.Equal(got, tt.want) {
				t.Errorf("%s is %v to %s, want %v", tt.host, got, tt.client, tt.want)
			}
		})
	}
	for _, host := range []string{"*.local", "*.kafka", "kafka-0.kafka", "*.kafka.shop.svc.cluster.local", strings.TrimSuffix(pod, ".")} {
		if got := resolve("shop", pod, with(service("evil", host, "nw1/6.6.6.6"), canonical)); got != nil {
			t.Errorf("an entry of another namespace for %s makes it %v", host, got)
		}
		if got := resolve("shop", pod, service("shop", host, "nw1/6.6.6.6")); !slices.Equal(got, addrs("6.6.6.6")) {
			t.Errorf("an entry of its namespace for %s makes it %v", host, got)
		}
	}
}

func TestResolveShuffles(t *testing.T) {
	called := 0
	r, err := dns.New(dns.Config{Shuffle: func(n int, swap func(i, j int)) {
		called++
		if n != 2 {
			t.Errorf("shuffle of %d addresses, want 2", n)
		}
		swap(0, 1)
	}})
	if err != nil {
		t.Fatal(err)
	}
	got := r.Resolve(testStore().Snapshot(), dns.Client{Namespace: "ns1", Network: "nw1"}, "headless", dns.TypeA)
	if want := addrs("31.31.31.31", "30.30.30.30"); called != 1 || !slices.Equal(got.Addrs, want) {
		t.Errorf("addresses %v after %d shuffles, want %v after 1", got.Addrs, called, want)
	}
}

func TestResolveWithoutIPv6(t *testing.T) {
	r, err := dns.New(dns.Config{DisableIPv6: true})
	if err != nil {
		t.Fatal(err)
	}
	client := dns.Client{Namespace: "ns1", Network: "nw1"}
	snap := testStore().Snapshot()
	if got := r.Resolve(snap, client, "dual.localhost", dns.TypeAAAA); got.Outcome != dns.NoData {
		t.Errorf("AAAA gives %v, want no data", got.Outcome)
	}
	if got := r.Resolve(snap, client, "dual.localhost", dns.TypeA); got.Outcome != dns.Addresses {
		t.Errorf("A gives %v, want addresses", got.Outcome)
	}
}

func TestResolveOtherDomain(t *testing.T) {
	store := workload.New()
	store.Replace(nil, []*workload.Service{service("ns1", "a.ns1.svc.corp.example", "/10.0.0.1")})
	r, err := dns.New(dns.Config{Domain: "Corp.Example."})
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"a", "a.ns1", "a.ns1.svc", "a.ns1.svc.corp.example"} {
		if got := r.Resolve(store.Snapshot(), dns.Client{Namespace: "ns1"}, host, dns.TypeA); got.Outcome != dns.Addresses {
			t.Errorf("%q gives %v, want addresses", host, got.Outcome)
		}
	}
}

func TestLookup(t *testing.T) {
	r, err := dns.New(dns.Config{})
	if err != nil {
		t.Fatal(err)
	}
	var client *workload.Workload
	unknown := errors.New("not yet")
	l := r.For(testStore(), func(context.Context) (*workload.Workload, error) {
		if client == nil {
			return nil, unknown
		}
		return client, nil
	}, nil)
	if _, err := l.Resolve(t.Context(), "productpage.", dns.TypeA); !errors.Is(err, unknown) {
		t.Errorf("error of an unknown client is %v, want %v", err, unknown)
	}
	client = &workload.Workload{Namespace: "ns1", Network: "nw1"}
	if a, err := l.Resolve(t.Context(), "productpage.", dns.TypeA); err != nil || a.Outcome != dns.Addresses {
		t.Errorf("Resolve gives %v, %v; want addresses", a, err)
	}
}

func FuzzResolve(f *testing.F) {
	for _, host := range []string{"", ".", "a", "*.wildcard", "productpage.ns1.svc.cluster.local.", "example.ns2.ns1.svc.cluster.local.", "pod.headless.ns1.svc.cluster.local.", "..", "a..ns1", `\000.`} {
		f.Add(host, dns.TypeA)
	}
	r, err := dns.New(dns.Config{})
	if err != nil {
		f.Fatal(err)
	}
	snap := testStore().Snapshot()
	f.Fuzz(func(t *testing.T, host string, qtype uint16) {
		got := r.Resolve(snap, dns.Client{Namespace: "ns1", Network: "nw1"}, host, qtype)
		if (got.Outcome == dns.Addresses) != (len(got.Addrs) > 0) {
			t.Errorf("%v with %d addresses", got.Outcome, len(got.Addrs))
		}
	})
}

func BenchmarkResolveKnown(b *testing.B) { benchmarkResolve(b, "productpage.ns1.svc.cluster.local.") }

// BenchmarkResolveUnknown is the costly case: every alias and wildcard is tried.
func BenchmarkResolveUnknown(b *testing.B) {
	benchmarkResolve(b, "www.bing.com.ns1.svc.cluster.local.")
}

func benchmarkResolve(b *testing.B, host string) {
	r, err := dns.New(dns.Config{})
	if err != nil {
		b.Fatal(err)
	}
	snap := testStore().Snapshot()
	client := dns.Client{Namespace: "ns1", Network: "nw1"}
	b.ReportAllocs()
	for b.Loop() {
		r.Resolve(snap, client, host, dns.TypeA)
	}
}
