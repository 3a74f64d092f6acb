package publish

import (
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
	"github.com/culvert-mesh/culvert/workload/workloadtest"
)

// history is a sequence of states, each the successor of the one before.
func history(t testing.TB) []*state {
	t.Helper()
	store, policies := workload.New(), policy.New()
	var states []*state
	var last *state
	add := func() {
		last = last.next(snapshots{workloads: store.Snapshot(), policies: policies.Snapshot()}, time.Now(), slog.New(slog.DiscardHandler))
		states = append(states, last)
	}
	add()
	store.Apply(workloadtest.Events(
		workloadtest.Pod("ns/a", []string{"10.0.0.1"}, workloadtest.In("ns/svc.ns")),
		workloadtest.Pod("ns/b", []string{"10.0.0.2"}, workloadtest.In("ns/svc.ns")),
		workloadtest.Service("ns/svc.ns", []string{"10.1.0.1", "/10.2.0.0/16"}),
	))
	policies.Apply([]*policy.Policy{{Namespace: "ns", Name: "p"}}, nil)
	add()
	store.Apply([]workload.Event{workload.Removal("cluster1//Pod/ns/a"), workload.Upsert(workloadtest.Pod("ns/c", []string{"10.0.0.1"}))})
	add()
	store.Apply([]workload.Event{workload.Removal("ns/svc.ns"), workload.Upsert(workloadtest.Pod("ns/b", []string{"10.0.0.9"}))})
	policies.Apply(nil, []string{"ns/p"})
	add()
	// What was gone is again what it was, and what was new is gone.
	store.Apply(workloadtest.Events(
		workloadtest.Pod("ns/a", []string{"10.0.0.1"}, workloadtest.In("ns/svc.ns")),
		workloadtest.Pod("ns/b", []string{"10.0.0.2"}, workloadtest.In("ns/svc.ns")),
		workloadtest.Service("ns/svc.ns", []string{"10.1.0.1", "/10.2.0.0/16"}),
	))
	store.Apply([]workload.Event{workload.Removal("cluster1//Pod/ns/c")})
	policies.Apply([]*policy.Policy{{Namespace: "ns", Name: "p"}}, nil)
	add()
	return states
}

// replica is what a client that believes all that it is told holds of one type.
type replica map[string]string

// receive applies a response as it is on the wire.
func (m replica) receive(t *testing.T, r *response) string {
	t.Helper()
	var wire discovery.DeltaDiscoveryResponse
	if err := proto.Unmarshal(r.encode().Materialize(), &wire); err != nil {
		t.Fatalf("response does not decode: %v", err)
	}
	if wire.GetTypeUrl() != r.typeURL || wire.GetNonce() != r.nonce || len(wire.GetResources()) != len(r.resources) {
		t.Fatalf("response is %v, want that of %+v", &wire, r)
	}
	told := make(map[string]bool)
	once := func(name string) {
		if told[name] {
			t.Fatalf("%s is told of twice in %v", name, &wire)
		}
		told[name] = true
	}
	for _, name := range wire.GetRemovedResources() {
		once(name)
		delete(m, name)
	}
	for _, res := range wire.GetResources() {
		once(res.GetName())
		if res.GetResource().GetTypeUrl() != r.typeURL {
			t.Fatalf("resource of type %s in a response of type %s", res.GetResource().GetTypeUrl(), r.typeURL)
		}
		m[res.GetName()] = res.GetVersion()
	}
	return wire.GetNonce()
}

// FuzzSession gives a session any requests, while the state goes on, also between
// question and answer, and checks that whatever is answered decodes, that nothing is
// sent while an answer is missing, and that in the end a client of everything has
// everything, and one of names nothing that is no more or was different.
func FuzzSession(f *testing.F) {
	seed := func(requests ...*discovery.DeltaDiscoveryRequest) {
		var b []byte
		for _, r := range requests {
			m, err := proto.Marshal(r)
			if err != nil {
				f.Fatal(err)
			}
			b = protowire.AppendBytes(b, m)
		}
		f.Add(b)
	}
	seed(&discovery.DeltaDiscoveryRequest{TypeUrl: AddressType}, &discovery.DeltaDiscoveryRequest{TypeUrl: AuthorizationType})
	seed(&discovery.DeltaDiscoveryRequest{TypeUrl: AddressType, ResourceNamesSubscribe: []string{"*"}, ResourceNamesUnsubscribe: []string{"*"}},
		&discovery.DeltaDiscoveryRequest{TypeUrl: AddressType, ResourceNamesSubscribe: []string{"/10.1.0.1", "ns/svc.ns", "cluster1//Pod/ns/a"}},
		&discovery.DeltaDiscoveryRequest{TypeUrl: AddressType, ResponseNonce: "1", ErrorDetail: &rpcstatus.Status{Message: "no"}},
		&discovery.DeltaDiscoveryRequest{TypeUrl: AddressType, ResourceNamesSubscribe: []string{"*"}},
		&discovery.DeltaDiscoveryRequest{TypeUrl: AddressType, ResourceNamesUnsubscribe: []string{"*", "x"}, ResourceNamesSubscribe: []string{"/10.2.3.4"}})
	seed(&discovery.DeltaDiscoveryRequest{TypeUrl: AddressType, InitialResourceVersions: map[string]string{"ns/svc.ns": "1", "gone": "2"}})
	f.Fuzz(func(t *testing.T, b []byte) {
		states := history(t)
		s := newSession(Peer{Node: "node-a"}, AuthorizationType, AddressType)
		held := map[string]replica{AddressType: {}, AuthorizationType: {}}
		for i := 0; len(b) > 0; i++ {
			m, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return
			}
			b = b[n:]
			var r discovery.DeltaDiscoveryRequest
			if proto.Unmarshal(m, &r) != nil {
				continue
			}
			r.ResponseNonce = "" // answers come from the client below
			sub := s.subscription(r.GetTypeUrl())
			if sub != nil {
				held[sub.typeURL].ask(&r, !sub.begun, sub.all)
			}
			if _, err := s.take(&r); err != nil {
				return
			}
			for range i % 3 {
				answer(t, s, states[min(i, len(states)-1)], held)
			}
		}
		settle(t, s, states[len(states)-1], held)
	})
}

// settle lets the client have the last state, and checks what it holds then.
func settle(t *testing.T, s *session, last *state, held map[string]replica) {
	t.Helper()
	drain(t, s, last, held)
	for _, sub := range s.types {
		switch {
		case sub.begun && sub.all:
			compare(t, held[sub.typeURL], last.of(sub.typeURL))
		case sub.begun:
			for name, version := range held[sub.typeURL] {
				if r := last.of(sub.typeURL).At(name); r == nil || r.version != version {
					t.Fatalf("client of names holds %s in version %s, and it is %+v", name, version, r)
				}
			}
			for name := range sub.names {
				if r := last.of(sub.typeURL).At(name); r != nil && held[sub.typeURL][name] == "" {
					t.Fatalf("client of names has no %s", name)
				}
			}
		}
	}
}

// TestSessionOfAnyRequests: whatever a client asks for and no longer wants, and
// whatever changes between its questions and their answers, it ends with the last.
func TestSessionOfAnyRequests(t *testing.T) {
	states := history(t)
	names := []string{wildcard, wildcard, "ns/svc.ns", "cluster1//Pod/ns/a", "cluster1//Pod/ns/b", "cluster1//Pod/ns/c", "/10.1.0.1", "/10.0.0.1", "/10.2.3.4", "ns/p", "none"}
	var seed uint64
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("with seed %d", seed)
		}
	})
	for seed = range 20_000 {
		rng := rand.New(rand.NewPCG(seed, 1))
		some := func() (list []string) {
			for rng.IntN(2) == 0 {
				list = append(list, names[rng.IntN(len(names))])
			}
			return list
		}
		s := newSession(Peer{}, AuthorizationType, AddressType)
		held := map[string]replica{AddressType: {}, AuthorizationType: {}}
		at := 0
		for range 1 + rng.IntN(8) {
			r := &discovery.DeltaDiscoveryRequest{TypeUrl: AddressType, ResourceNamesSubscribe: some(), ResourceNamesUnsubscribe: some()}
			if rng.IntN(3) == 0 {
				r.TypeUrl = AuthorizationType
			}
			sub := s.subscription(r.GetTypeUrl())
			if !sub.begun && rng.IntN(2) == 0 {
				r.InitialResourceVersions = map[string]string{"gone": "1"}
				for name, res := range states[rng.IntN(len(states))].of(r.GetTypeUrl()).All() {
					r.InitialResourceVersions[name] = res.version
				}
			}
			held[sub.typeURL].ask(r, !sub.begun, sub.all)
			if _, err := s.take(r); err != nil {
				t.Fatal(err)
			}
			for range rng.IntN(3) {
				answer(t, s, states[at], held)
			}
			at = min(at+rng.IntN(2), len(states)-1)
		}
		settle(t, s, states[len(states)-1], held)
	}
}

// ask notes what a request says of what the client has: it brings that with its first one, and what it no longer wants it
// throws away.
func (m replica) ask(r *discovery.DeltaDiscoveryRequest, first, all bool) {
	if first {
		maps.Copy(m, r.GetInitialResourceVersions())
	}
	both := slices.Contains(r.GetResourceNamesSubscribe(), wildcard)
	for _, name := range r.GetResourceNamesUnsubscribe() {
		switch {
		case !all:
			delete(m, name)
		case name == wildcard && !both:
			clear(m)
		}
	}
}

// answer answers the next response and reports whether there was one.
func answer(t *testing.T, s *session, st *state, held map[string]replica) bool {
	t.Helper()
	r := s.next(st)
	if r == nil {
		return false
	}
	if s.next(st) != nil {
		t.Fatal("a response before the last one was answered")
	}
	nonce := held[r.typeURL].receive(t, r)
	o, err := s.take(&discovery.DeltaDiscoveryRequest{TypeUrl: r.typeURL, ResponseNonce: nonce})
	if err != nil || !o.answered {
		t.Fatalf("an answer is %+v, %v", o, err)
	}
	return true
}

// drain answers until there is nothing to say.
func drain(t *testing.T, s *session, st *state, held map[string]replica) {
	t.Helper()
	for range 100 {
		if !answer(t, s, st, held) {
			return
		}
	}
	t.Fatal("there is always something to say")
}

// TestWildcardClientAsks: a client of everything that asks for an address is told
// that there is nothing only if there is nothing.
func TestWildcardClientAsks(t *testing.T) {
	st := history(t)[1]
	s := newSession(Peer{}, AddressType)
	_, err := s.take(&discovery.DeltaDiscoveryRequest{TypeUrl: AddressType, ResourceNamesSubscribe: []string{wildcard, "/10.1.0.1", "/10.9.9.9"}})
	if err != nil {
		t.Fatal(err)
	}
	if r := s.next(st); r == nil || !slices.Equal(r.removed, []string{"/10.9.9.9"}) {
		t.Errorf("answered with %+v", r)
	}
}

// TestUnsubscribedStaysAway: what a client was sent and wants no more does not come back when it changes.
func TestUnsubscribedStaysAway(t *testing.T) {
	const a, b = "cluster1//Pod/ns/a", "cluster1//Pod/ns/b"
	states := history(t)
	s := newSession(Peer{}, AddressType)
	held := map[string]replica{AddressType: {}}
	for i, r := range []*discovery.DeltaDiscoveryRequest{
		{ResourceNamesSubscribe: []string{a}}, {ResourceNamesSubscribe: []string{b}}, {ResourceNamesUnsubscribe: []string{b}},
	} {
		r.TypeUrl = AddressType
		if _, err := s.take(r); err != nil {
			t.Fatal(err)
		}
		if i < 2 && !answer(t, s, states[1+i], held) {
			t.Fatalf("no answer to %v", r)
		}
	}
	delete(held[AddressType], b)
	drain(t, s, states[3], held)
	if version, ok := held[AddressType][b]; ok {
		t.Errorf("was sent %s in version %s", b, version)
	}
}

func compare(t *testing.T, got replica, want catalogue) {
	t.Helper()
	if len(got) != want.Len() {
		t.Fatalf("client holds %v, want %d resources", got, want.Len())
	}
	for name, r := range want.All() {
		if got[name] != r.version {
			t.Fatalf("client holds %s in version %q, want %q", name, got[name], r.version)
		}
	}
}

// TestSessionSkipsStates: whatever states a client misses, in whatever order types
// are answered, it ends with the last.
func TestSessionSkipsStates(t *testing.T) {
	states := history(t)
	rng := rand.New(rand.NewPCG(1, 1))
	for range 200 {
		s := newSession(Peer{}, AuthorizationType, AddressType)
		held := map[string]replica{AddressType: {}, AuthorizationType: {}}
		for i, st := range states {
			if i == 0 || rng.IntN(2) == 0 {
				url := []string{AddressType, AuthorizationType}[rng.IntN(2)]
				if !s.subscription(url).begun {
					if _, err := s.take(&discovery.DeltaDiscoveryRequest{TypeUrl: url}); err != nil {
						t.Fatal(err)
					}
				}
				drain(t, s, st, held)
			}
		}
		drain(t, s, states[len(states)-1], held)
		for _, sub := range s.types {
			if sub.begun {
				compare(t, held[sub.typeURL], states[len(states)-1].of(sub.typeURL))
			}
		}
	}
}

// TestNameOfBoth: of a workload and a service with one name the workload is
// published, and the service when the workload goes.
func TestNameOfBoth(t *testing.T) {
	store, policies, log := workload.New(), policy.New(), slog.New(slog.DiscardHandler)
	w := workloadtest.Pod("ns/a", nil, func(w *workload.Workload) { w.UID = "ns/svc.ns" })
	store.Apply(workloadtest.Events(w, workloadtest.Service("ns/svc.ns", nil)))
	var st *state
	st = st.next(snapshots{workloads: store.Snapshot(), policies: policies.Snapshot()}, time.Now(), log)
	if r := st.addresses.At("ns/svc.ns"); r == nil || r.workload == nil {
		t.Errorf("published is %+v, want the workload", r)
	}
	store.Apply([]workload.Event{workload.Removal("ns/svc.ns")})
	st = st.next(snapshots{workloads: store.Snapshot(), policies: policies.Snapshot()}, time.Now(), log)
	if r := st.addresses.At("ns/svc.ns"); r == nil || r.service == nil {
		t.Errorf("published is %+v, want the service", r)
	}
	if same := st.next(snapshots{workloads: store.Snapshot(), policies: policies.Snapshot()}, time.Now(), log); same != st {
		t.Error("a state in which nothing differs is a new one")
	}
}

// BenchmarkChange publishes one change among 100,000 workloads to one client.
func BenchmarkChange(b *testing.B) {
	store, policies, log := workload.New(), policy.New(), slog.New(slog.DiscardHandler)
	var batch []workload.Event
	for i := range 100_000 {
		batch = append(batch, workload.Upsert(workloadtest.Pod("ns/pod"+time.Duration(i).String(), []string{"10.0.0.1"}, func(w *workload.Workload) { w.Addresses = nil })))
	}
	store.Apply(batch)
	var st *state
	st = st.next(snapshots{workloads: store.Snapshot(), policies: policies.Snapshot()}, time.Now(), log)
	s := newSession(Peer{}, AuthorizationType, AddressType)
	if _, err := s.take(&discovery.DeltaDiscoveryRequest{TypeUrl: AddressType}); err != nil {
		b.Fatal(err)
	}
	s.next(st)
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		i++
		store.Apply([]workload.Event{workload.Upsert(workloadtest.Pod("ns/pod", nil, func(w *workload.Workload) { w.Capacity = uint32(i) }))})
		st = st.next(snapshots{workloads: store.Snapshot(), policies: policies.Snapshot()}, time.Now(), log)
		s.open = nil
		if r := s.next(st); r == nil || len(r.resources) != 1 {
			b.Fatal("not one resource")
		}
	}
}

// BenchmarkWhole answers the first request of a client with 100,000 workloads.
func BenchmarkWhole(b *testing.B) {
	store, policies := workload.New(), policy.New()
	var batch []workload.Event
	for i := range 100_000 {
		batch = append(batch, workload.Upsert(workloadtest.Pod("ns/pod"+time.Duration(i).String(), nil, workloadtest.In("ns/svc.ns", 80, 8080))))
	}
	store.Apply(batch)
	var st *state
	st = st.next(snapshots{workloads: store.Snapshot(), policies: policies.Snapshot()}, time.Now(), slog.New(slog.DiscardHandler))
	b.ReportAllocs()
	for b.Loop() {
		s := newSession(Peer{}, AuthorizationType, AddressType)
		if _, err := s.take(&discovery.DeltaDiscoveryRequest{TypeUrl: AddressType}); err != nil {
			b.Fatal(err)
		}
		b.SetBytes(int64(s.next(st).encode().Len()))
	}
}

// TestManyThatCameAlong: a client of one name comes back with all that it was sent for it, and is told of changes of that; what it
// brings and is no more is not kept.
func TestManyThatCameAlong(t *testing.T) {
	objects := []any{workloadtest.Service("ns/svc.ns", []string{"10.1.0.1"})}
	for i := range maxNames + 1 {
		a := netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)}).String()
		objects = append(objects, workloadtest.Pod("ns/p"+strconv.Itoa(i), []string{a}, workloadtest.In("ns/svc.ns")))
	}
	store := workloadtest.Store(objects...)
	var st *state
	next := func() {
		st = st.next(snapshots{workloads: store.Snapshot(), policies: policy.New().Snapshot()}, time.Now(), slog.New(slog.DiscardHandler))
	}
	next()
	s, m := newSession(Peer{}, AddressType), make(replica)
	take := func(r *discovery.DeltaDiscoveryRequest) {
		t.Helper()
		r.TypeUrl = AddressType
		if _, err := s.take(r); err != nil {
			t.Fatal(err)
		}
	}
	hear := func() {
		t.Helper()
		take(&discovery.DeltaDiscoveryRequest{ResponseNonce: m.receive(t, s.next(st))})
	}
	take(&discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"ns/svc.ns"}})
	hear()

	for i := range maxNames + 1 {
		m["gone"+strconv.Itoa(i)] = "1"
	}
	s = newSession(Peer{}, AddressType)
	take(&discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"ns/svc.ns"}, InitialResourceVersions: maps.Clone(m)})
	take(&discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"ns/other.ns"}}) // also before the first answer
	hear()
	compare(t, m, st.of(AddressType))
	if sub := s.subscription(AddressType); len(sub.names) != len(m)+1 || sub.asked != 2 {
		t.Errorf("%d names are kept, %d of them asked for, and the client has %d resources", len(sub.names), sub.asked, len(m))
	}
	store.Apply(workloadtest.Events(workloadtest.Pod("ns/p7", []string{"10.3.0.1"})))
	next()
	hear()
	compare(t, m, st.of(AddressType))
}
