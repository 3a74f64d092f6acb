package publish_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
	"github.com/culvert-mesh/culvert/workload/publish"
	"github.com/culvert-mesh/culvert/workload/workloadtest"
)

const (
	uidA = "cluster1//Pod/ns/a"
	uidB = "cluster1//Pod/ns/b"
	uidC = "cluster1//Pod/ns/c"
)

func pod(name, ip string, mods ...func(*workload.Workload)) *workload.Workload {
	return workloadtest.Pod("ns/"+name, []string{ip}, mods...)
}

func onNode(node string) func(*workload.Workload) {
	return func(w *workload.Workload) { w.Node = node }
}

func wantNames(t *testing.T, r *discovery.DeltaDiscoveryResponse, resources []string, removed ...string) {
	t.Helper()
	got := names(r)
	slices.Sort(got)
	if !slices.Equal(got, resources) {
		t.Errorf("resources are %q, want %q", got, resources)
	}
	if !slices.Equal(r.GetRemovedResources(), removed) {
		t.Errorf("removed are %q, want %q", r.GetRemovedResources(), removed)
	}
}

// TestWildcard: everything in one response, then what changes.
func TestWildcard(t *testing.T) {
	f := start(t, nil, pod("a", "10.0.0.1"), workloadtest.Service("ns/svc.ns", []string{"10.1.0.1"}))
	for _, first := range []*discovery.DeltaDiscoveryRequest{
		subscribe(publish.AddressType, nil),
		{TypeUrl: publish.AddressType, ResourceNamesSubscribe: []string{"*"}},
	} {
		c := f.dial(t, "Bearer good")
		c.send(first)
		wantNames(t, c.answer(publish.AddressType), []string{uidA, "ns/svc.ns"})
	}
	c := f.dial(t, "Bearer good")
	c.send(subscribe(publish.AddressType, nil))
	c.answer(publish.AddressType)
	f.store.Apply(workloadtest.Events(pod("b", "10.0.0.2")))
	wantNames(t, c.answer(publish.AddressType), []string{uidB})
	f.store.Apply([]workload.Event{workload.Removal(uidA), workload.Removal("ns/svc.ns")})
	wantNames(t, c.answer(publish.AddressType), []string{}, uidA, "ns/svc.ns")
}

// TestEmptyStateIsAnswered: a client waits for an answer to its first request, also
// when there is nothing.
func TestEmptyStateIsAnswered(t *testing.T) {
	f := start(t, nil)
	c := f.dial(t, "Bearer good")
	for _, url := range []string{publish.AddressType, publish.AuthorizationType} {
		c.send(subscribe(url, nil))
		wantNames(t, c.answer(url), []string{})
	}
}

// TestReconnect: what the client has in the same version is not sent again, what is
// no more is removed, and a version that is empty or another is sent. Versions come
// from the content alone, so that another server agrees.
func TestReconnect(t *testing.T) {
	f := start(t, nil, pod("a", "10.0.0.1"), pod("b", "10.0.0.2"), pod("c", "10.0.0.3", workloadtest.In("ns/x.ns", 80, 1, 81, 2, 82, 3)))
	c := f.dial(t, "Bearer good")
	c.send(subscribe(publish.AddressType, nil))
	known := make(map[string]string)
	for _, r := range c.answer(publish.AddressType).GetResources() {
		known[r.GetName()] = r.GetVersion()
	}

	other := start(t, nil, pod("c", "10.0.0.3", workloadtest.In("ns/x.ns", 80, 1, 81, 2, 82, 3)), pod("a", "10.0.0.99"))
	c = other.dial(t, "Bearer good")
	c.send(subscribe(publish.AddressType, known))
	wantNames(t, c.answer(publish.AddressType), []string{uidA}, uidB)

	known[uidC] = ""
	c = other.dial(t, "Bearer good")
	c.send(subscribe(publish.AddressType, known))
	wantNames(t, c.answer(publish.AddressType), []string{uidA, uidC}, uidB)
}

// TestOneAtATime: nothing is sent before the last response was answered, and then
// only the newest state.
func TestOneAtATime(t *testing.T) {
	f := start(t, nil)
	c := f.dial(t, "Bearer good")
	c.send(subscribe(publish.AddressType, nil))
	first := c.receive()
	other := f.dial(t, "Bearer good")
	other.send(subscribe(publish.AddressType, nil))
	other.answer(publish.AddressType)
	for _, ip := range []string{"10.0.0.1", "10.0.0.2", "10.0.0.3"} {
		f.store.Apply(workloadtest.Events(pod("a", ip)))
		wantNames(t, other.answer(publish.AddressType), []string{uidA}) // the others do not wait
	}
	f.store.Apply([]workload.Event{workload.Removal(uidA), workload.Upsert(pod("b", "10.0.0.4"))})
	wantNames(t, other.answer(publish.AddressType), []string{uidB}, uidA)
	select {
	case r := <-c.responses:
		t.Errorf("sent %v before the answer", r)
	default:
	}
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: publish.AddressType, ResponseNonce: first.GetNonce()})
	// It never had a, so it is told nothing about it.
	wantNames(t, c.answer(publish.AddressType), []string{uidB})
}

// TestPoliciesFirst: of a change of both types a client gets the policies first.
func TestPoliciesFirst(t *testing.T) {
	f := start(t, func(c *publish.Config) { c.Debounce = 50 * time.Millisecond })
	c := f.dial(t, "Bearer good")
	for _, url := range []string{publish.AddressType, publish.AuthorizationType} {
		c.send(subscribe(url, nil))
		c.answer(url)
	}
	f.policies.Apply([]*policy.Policy{{Namespace: "ns", Name: "p", Scope: policy.WorkloadSelector}}, nil)
	f.store.Apply(workloadtest.Events(pod("a", "10.0.0.1", func(w *workload.Workload) { w.AuthorizationPolicies = []string{"ns/p"} })))
	wantNames(t, c.answer(publish.AuthorizationType), []string{"ns/p"})
	wantNames(t, c.answer(publish.AddressType), []string{uidA})
}

// TestPoliciesLast: a policy that goes is with the client until no workload that it
// has names it.
func TestPoliciesLast(t *testing.T) {
	ready := make(chan struct{})
	f := start(t, func(c *publish.Config) { c.Debounce, c.Ready = 300*time.Millisecond, ready })
	named := pod("a", "10.0.0.1", func(w *workload.Workload) { w.AuthorizationPolicies = []string{"ns/p"} })
	f.policies.Apply([]*policy.Policy{{Namespace: "ns", Name: "p", Scope: policy.WorkloadSelector}}, nil)
	f.store.Apply(workloadtest.Events(named))
	close(ready)
	c := f.dial(t, "Bearer good")
	c.send(subscribe(publish.AuthorizationType, map[string]string{"ns/old": "1"}))
	wantNames(t, c.answer(publish.AuthorizationType), []string{"ns/p"})
	wantNames(t, c.answer(publish.AuthorizationType), []string{}, "ns/old")
	c.send(subscribe(publish.AddressType, nil))
	wantNames(t, c.answer(publish.AddressType), []string{uidA})

	f.store.Apply(workloadtest.Events(pod("a", "10.0.0.1")))
	f.policies.Apply([]*policy.Policy{{Namespace: "ns", Name: "q"}}, []string{"ns/p"})
	wantNames(t, c.answer(publish.AuthorizationType), []string{"ns/q"})
	wantNames(t, c.answer(publish.AddressType), []string{uidA})
	wantNames(t, c.answer(publish.AuthorizationType), []string{}, "ns/p")
}

// TestNarrowedPolicyLast: a policy that governed a namespace governs it until those
// whom it is for now name it; of one that a client has from an earlier stream nobody
// knows what it governed there.
func TestNarrowedPolicyLast(t *testing.T) {
	// Two changes are nearly always seen as one. On a slow machine the second may come later, so what is to be sent first is
	// what changes first.
	f := start(t, func(c *publish.Config) { c.Debounce = 50 * time.Millisecond })
	p := func(s policy.Scope) []*policy.Policy { return []*policy.Policy{{Namespace: "ns", Name: "p", Scope: s}} }
	c := f.dial(t, "Bearer good")
	for _, url := range []string{publish.AuthorizationType, publish.AddressType} {
		c.send(subscribe(url, nil))
		c.answer(url)
	}
	f.policies.Apply(p(policy.Namespace), nil)
	wantNames(t, c.answer(publish.AuthorizationType), []string{"ns/p"})
	f.store.Apply(workloadtest.Events(pod("a", "10.0.0.1", func(w *workload.Workload) { w.AuthorizationPolicies = []string{"ns/p"} })))
	f.policies.Apply(p(policy.WorkloadSelector), nil)
	wantNames(t, c.answer(publish.AddressType), []string{uidA})
	wantNames(t, c.answer(publish.AuthorizationType), []string{"ns/p"})
	f.policies.Apply(p(policy.Namespace), nil)
	f.store.Apply(workloadtest.Events(pod("a", "10.0.0.1")))
	wantNames(t, c.answer(publish.AuthorizationType), []string{"ns/p"})
	wantNames(t, c.answer(publish.AddressType), []string{uidA})

	f.policies.Apply(p(policy.WorkloadSelector), nil)
	wantNames(t, c.answer(publish.AuthorizationType), []string{"ns/p"})
	d := f.dial(t, "Bearer good")
	d.send(subscribe(publish.AddressType, nil))
	d.send(subscribe(publish.AuthorizationType, map[string]string{"ns/p": "1"}))
	for range 2 { // these in any order: it depends on which question was read first
		r := d.receive()
		d.send(&discovery.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()})
		want := map[string][]string{publish.AddressType: {uidA}, publish.AuthorizationType: {}}[r.GetTypeUrl()]
		wantNames(t, r, want)
	}
	wantNames(t, d.answer(publish.AuthorizationType), []string{"ns/p"})
}

// TestRejectedIsNotSentAgain: a rejection is logged and counted, and the resource
// comes again when it changes.
func TestRejectedIsNotSentAgain(t *testing.T) {
	f := start(t, nil, pod("a", "10.0.0.1"))
	c := f.dial(t, "Bearer good")
	c.send(subscribe(publish.AddressType, nil))
	r := c.receive()
	c.send(&discovery.DeltaDiscoveryRequest{
		TypeUrl: publish.AddressType, ResponseNonce: r.GetNonce(), ErrorDetail: &rpcstatus.Status{Message: "cannot take a"},
	})
	f.observed.eventually(t, "rejection is counted", "rejected "+publish.AddressType, 1)
	f.store.Apply(workloadtest.Events(pod("b", "10.0.0.2")))
	wantNames(t, c.answer(publish.AddressType), []string{uidB})
	f.store.Apply(workloadtest.Events(pod("a", "10.0.0.3")))
	wantNames(t, c.answer(publish.AddressType), []string{uidA})
	if log := f.log.String(); !strings.Contains(log, "cannot take a") {
		t.Errorf("the log does not say why:\n%s", log)
	}
}

// TestExpiredNonceIsIgnored: an answer to another response than the last does not
// let the next one out.
func TestExpiredNonceIsIgnored(t *testing.T) {
	f := start(t, nil)
	c := f.dial(t, "Bearer good")
	c.send(subscribe(publish.AddressType, nil))
	r := c.receive()
	f.store.Apply(workloadtest.Events(pod("a", "10.0.0.1")))
	for i, wrong := range []*discovery.DeltaDiscoveryRequest{
		{TypeUrl: publish.AddressType, ResponseNonce: "4711"},
		{TypeUrl: publish.AddressType, ResponseNonce: "4711", ErrorDetail: &rpcstatus.Status{Message: "no"}},
		{TypeUrl: publish.AddressType, ResponseNonce: r.GetNonce() + "0"},
	} {
		c.send(wrong)
		f.observed.eventually(t, "the answer is seen", "expired "+publish.AddressType, i+1)
	}
	select {
	case r := <-c.responses:
		t.Errorf("sent %v before the answer", r)
	default:
	}
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: publish.AddressType, ResponseNonce: r.GetNonce()})
	wantNames(t, c.answer(publish.AddressType), []string{uidA})
	if n := f.observed.of("rejected " + publish.AddressType); n != 0 {
		t.Errorf("%d rejections counted, want none", n)
	}
}

// TestNonceOfAnotherType: an answer about one type is none to a response of another, whose client is waited for still.
func TestNonceOfAnotherType(t *testing.T) {
	f := start(t, nil)
	c := f.dial(t, "Bearer good")
	c.send(subscribe(publish.AddressType, nil))
	r := c.receive()
	c.send(subscribe(publish.AuthorizationType, nil))
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: publish.AuthorizationType, ResponseNonce: r.GetNonce()})
	f.observed.eventually(t, "the answer is seen", "expired "+publish.AuthorizationType, 1)
	select {
	case r := <-c.responses:
		t.Errorf("sent %v before the answer", r)
	default:
	}
}

// TestOnDemand: a client of names gets what it asks for by any of the names, with
// the workloads of services, and from then on their changes.
func TestOnDemand(t *testing.T) {
	f := start(t, nil,
		pod("a", "10.0.0.1", workloadtest.In("ns/svc.ns")), pod("b", "10.0.0.2", workloadtest.In("ns/svc.ns"), workloadtest.Unhealthy), pod("c", "10.0.0.3"),
		workloadtest.Service("ns/svc.ns", []string{"10.1.0.1", "net1/10.2.0.0/16"}),
	)
	c := f.dial(t, "Bearer good")
	c.send(onDemand())
	wantNames(t, c.answer(publish.AddressType), []string{})

	c.send(ask("/10.0.0.3"))
	r := c.answer(publish.AddressType)
	wantNames(t, r, []string{uidC})
	if got, want := r.GetResources()[0].GetAliases(), []string{"/10.0.0.3"}; !slices.Equal(got, want) {
		t.Errorf("aliases are %q, want %q", got, want)
	}
	c.send(ask("/10.1.0.1"))
	r = c.answer(publish.AddressType)
	wantNames(t, r, []string{uidA, uidB, "ns/svc.ns"})
	if got, want := r.GetResources()[0].GetAliases(), []string{"/10.1.0.1", "net1/10.2.0.0/16"}; !slices.Equal(got, want) {
		t.Errorf("aliases of the service, which comes first, are %q, want %q", got, want)
	}
	c.send(ask(uidA, "ns/svc.ns", "/10.9.9.9", "nonsense", "x/y/z"))
	wantNames(t, c.answer(publish.AddressType), []string{uidA, uidB, "ns/svc.ns"}, "/10.9.9.9", "nonsense", "x/y/z")

	// A new endpoint of a known service, and a pod that takes an address asked for.
	f.store.Apply(workloadtest.Events(workloadtest.Pod("ns/d", []string{"10.0.0.4"}, workloadtest.In("ns/svc.ns")), workloadtest.Pod("ns/stranger", []string{"10.0.0.5"})))
	wantNames(t, c.answer(publish.AddressType), []string{"cluster1//Pod/ns/d"})
	f.store.Apply(workloadtest.Events(workloadtest.Pod("ns/e", []string{"10.9.9.9"})))
	wantNames(t, c.answer(publish.AddressType), []string{"cluster1//Pod/ns/e"})
	f.store.Apply([]workload.Event{workload.Removal(uidB)})
	wantNames(t, c.answer(publish.AddressType), []string{}, uidB)

	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: publish.AddressType, ResourceNamesUnsubscribe: []string{"/10.0.0.3", uidC}})
	c.send(ask(uidA)) // when this is answered, that is done
	c.answer(publish.AddressType)
	f.store.Apply([]workload.Event{workload.Removal(uidC)})
	f.store.Apply([]workload.Event{workload.Removal(uidA)})
	r = c.answer(publish.AddressType)
	if slices.Contains(r.GetRemovedResources(), uidC) {
		t.Errorf("told of %q after unsubscribing", uidC)
	}
}

// TestOnDemandServiceComesLater: a service that did not exist when it was asked for
// brings its workloads when it comes.
func TestOnDemandServiceComesLater(t *testing.T) {
	f := start(t, nil, pod("a", "10.0.0.1", workloadtest.In("ns/svc.ns")))
	c := f.dial(t, "Bearer good")
	c.send(ask("ns/svc.ns", "/10.1.0.1"))
	wantNames(t, c.answer(publish.AddressType), []string{}, "/10.1.0.1", "ns/svc.ns")
	f.store.Apply(workloadtest.Events(workloadtest.Service("ns/svc.ns", []string{"10.1.0.1"})))
	wantNames(t, c.answer(publish.AddressType), []string{uidA, "ns/svc.ns"})
}

// TestOnDemandOwnNode: the workloads of the client's node come unasked. Which node
// that is, is not for the client to say.
func TestOnDemandOwnNode(t *testing.T) {
	f := start(t, nil, pod("a", "10.0.0.1", onNode("node-a")), pod("b", "10.0.0.2", onNode("node-b")))
	c := f.dial(t, "Bearer good")
	c.send(onDemand())
	wantNames(t, c.answer(publish.AddressType), []string{uidA})
	f.store.Apply(workloadtest.Events(pod("c", "10.0.0.3", onNode("node-a")), workloadtest.Pod("ns/d", []string{"10.0.0.4"}, onNode("node-b"))))
	wantNames(t, c.answer(publish.AddressType), []string{uidC})
}

// TestChangesOfKind: from names to everything and back.
func TestChangesOfKind(t *testing.T) {
	f := start(t, nil, pod("a", "10.0.0.1"), pod("b", "10.0.0.2"))
	c := f.dial(t, "Bearer good")
	c.send(onDemand())
	c.answer(publish.AddressType)
	c.send(ask("*"))
	wantNames(t, c.answer(publish.AddressType), []string{uidA, uidB})
	c.send(ask(uidA, "none")) // a wildcard client that asks is answered too
	wantNames(t, c.answer(publish.AddressType), []string{uidA}, "none")
	c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: publish.AddressType, ResourceNamesUnsubscribe: []string{"*"}, ResourceNamesSubscribe: []string{uidB}})
	wantNames(t, c.answer(publish.AddressType), []string{uidB})
	f.store.Apply(workloadtest.Events(pod("a", "10.0.0.3"), pod("b", "10.0.0.4")))
	wantNames(t, c.answer(publish.AddressType), []string{uidB})
}

// TestOnDemandReconnect: a client of names that comes back tells what it has.
func TestOnDemandReconnect(t *testing.T) {
	f := start(t, nil, pod("a", "10.0.0.1"), pod("b", "10.0.0.2"), pod("c", "10.0.0.3"))
	c := f.dial(t, "Bearer good")
	c.send(ask(uidA))
	version := c.answer(publish.AddressType).GetResources()[0].GetVersion()
	c = f.dial(t, "Bearer good")
	r := onDemand()
	r.InitialResourceVersions = map[string]string{uidA: version, uidB: "", "gone": "1", "/10.0.0.3": ""}
	c.send(r)
	wantNames(t, c.answer(publish.AddressType), []string{uidB, uidC}, "gone")
	f.store.Apply(workloadtest.Events(pod("a", "10.0.0.9")))
	wantNames(t, c.answer(publish.AddressType), []string{uidA})
	// An address that it brought is another pod's.
	f.store.Apply(append(workloadtest.Events(pod("d", "10.0.0.3")), workload.Removal(uidC)))
	wantNames(t, c.answer(publish.AddressType), []string{"cluster1//Pod/ns/d"}, uidC)
}

// TestTooManyNames: names may be many, but not any number.
func TestTooManyNames(t *testing.T) {
	f := start(t, nil)
	c := f.dial(t, "Bearer good")
	c.send(onDemand())
	c.answer(publish.AddressType)
	var many []string
	for i := range 25_000 {
		many = append(many, "ns/"+strings.Repeat("x", i%100)+string(rune('a'+i%26))+time.Duration(i).String())
	}
	c.send(ask(many[:15_000]...))
	c.answer(publish.AddressType)
	c.send(ask(many[15_000:]...))
	if err := c.ended(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("stream ended with %v", err)
	}
}

// TestOtherMethods: nothing but delta xDS is served.
func TestOtherMethods(t *testing.T) {
	f := start(t, nil)
	s, err := discovery.NewAggregatedDiscoveryServiceClient(f.connect(t)).StreamAggregatedResources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); status.Code(err) != codes.Unimplemented {
		t.Errorf("state of the world ended with %v, want Unimplemented", err)
	}
}

// TestNothingBeforeReady: a client waits a little for the first state.
func TestNothingBeforeReady(t *testing.T) {
	ready := make(chan struct{})
	f := start(t, func(c *publish.Config) { c.Ready = ready })
	c := f.dial(t, "Bearer good")
	c.send(subscribe(publish.AddressType, nil))
	f.store.Apply(workloadtest.Events(pod("a", "10.0.0.1")))
	select {
	case r := <-c.responses:
		t.Fatalf("%v before the state is ready", r)
	case <-time.After(50 * time.Millisecond):
	}
	close(ready)
	wantNames(t, c.answer(publish.AddressType), []string{uidA})
}

// TestNeverReady: a client is asked to try elsewhere.
func TestNeverReady(t *testing.T) {
	t.Parallel() // it takes as long as a client waits
	f := start(t, func(c *publish.Config) { c.Ready = make(chan struct{}) })
	c := f.dial(t, "Bearer good")
	if err := c.ended(); status.Code(err) != codes.Unavailable {
		t.Errorf("stream ended with %v, want Unavailable", err)
	}
	f.observed.eventually(t, "refusal is counted", "refused ready", 1)
}

// TestSlowClient: one that does not answer is let go.
func TestSlowClient(t *testing.T) {
	f := start(t, func(c *publish.Config) { c.AnswerTimeout = 20 * time.Millisecond })
	c := f.dial(t, "Bearer good")
	c.send(subscribe(publish.AddressType, nil))
	c.receive()
	if err := c.ended(); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("stream ended with %v, want DeadlineExceeded", err)
	}
	f.observed.eventually(t, "refusal is counted", "refused slow", 1)
}

// TestQuietClientStays: silence is no fault when there is nothing to say.
func TestQuietClientStays(t *testing.T) {
	f := start(t, func(c *publish.Config) { c.AnswerTimeout = 20 * time.Millisecond })
	c := f.dial(t, "Bearer good")
	c.send(subscribe(publish.AddressType, nil))
	c.answer(publish.AddressType)
	select {
	case err := <-c.failed:
		t.Fatalf("stream ended: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	f.store.Apply(workloadtest.Events(pod("a", "10.0.0.1")))
	wantNames(t, c.answer(publish.AddressType), []string{uidA})
}

// TestMaxAge: a stream ends after its time, in a way that clients know.
func TestMaxAge(t *testing.T) {
	f := start(t, func(c *publish.Config) { c.MaxAge = 30 * time.Millisecond })
	c := f.dial(t, "Bearer good")
	if err := c.ended(); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("stream ended with %v, want DeadlineExceeded", err)
	}
}

// TestStreamsOfOnePeer: the newest streams of a peer win.
func TestStreamsOfOnePeer(t *testing.T) {
	f := start(t, func(c *publish.Config) { c.MaxStreamsPerPeer = 2 })
	var clients []*client
	for range 3 {
		c := f.dial(t, "Bearer good")
		c.send(subscribe(publish.AddressType, nil))
		c.answer(publish.AddressType)
		clients = append(clients, c)
	}
	if err := clients[0].ended(); status.Code(err) != codes.Canceled {
		t.Errorf("the oldest ended with %v, want Canceled", err)
	}
	f.store.Apply(workloadtest.Events(pod("a", "10.0.0.1")))
	for _, c := range clients[1:] {
		wantNames(t, c.answer(publish.AddressType), []string{uidA})
	}
}

// TestTooManyStreams: beyond the limit nobody is served.
func TestTooManyStreams(t *testing.T) {
	f := start(t, func(c *publish.Config) { c.MaxStreams = 1 })
	c := f.dial(t, "Bearer good")
	c.send(subscribe(publish.AddressType, nil))
	c.answer(publish.AddressType)
	if err := f.dial(t, "Bearer good").ended(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("stream ended with %v, want ResourceExhausted", err)
	}
}

// TestStop: when Run ends, streams end in a way that sends clients elsewhere, and
// later ones do not begin.
func TestStop(t *testing.T) {
	f := start(t, nil)
	c := f.dial(t, "Bearer good")
	c.send(subscribe(publish.AddressType, nil))
	c.answer(publish.AddressType)
	f.stop()
	for _, c := range []*client{c, f.dial(t, "Bearer good")} {
		if err := c.ended(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "transport is closing") {
			t.Errorf("stream ended with %v", err)
		}
	}
	eventually(t, "all streams have left", func() bool {
		f.observed.mu.Lock()
		defer f.observed.mu.Unlock()
		return f.observed.streams == 0
	})
}

func TestNewRefusesBadConfig(t *testing.T) {
	if _, err := publish.New(publish.Config{}); err == nil || err.Error() !=
		"configure publishing: no store given\nno readiness given\nno authentication given" {
		t.Errorf("error is %v", err)
	}
}
