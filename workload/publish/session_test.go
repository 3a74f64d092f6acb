package publish

import (
	"log/slog"
	"math/rand/v2"
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
	for _, name := range wire.GetRemovedResources() {
		delete(m, name)
	}
	for _, res := range wire.GetResources() {
		if res.GetResource().GetTypeUrl() != r.typeURL {
			t.Fatalf("resource of type %s in a response of type %s", res.GetResource().GetTypeUrl(), r.typeURL)
		}
		m[res.GetName()] = res.GetVersion()
	}
	return wire.GetNonce()
}

// FuzzSession gives a session any requests, while the state goes on, and checks
// that whatever is answered decodes, that nothing is sent while an answer is
// missing, and that a client of everything has everything in the end.
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
			first := sub != nil && !sub.begun
			if _, err := s.take(&r); err != nil {
				return
			}
			if first {
				for name, version := range r.GetInitialResourceVersions() {
					held[r.GetTypeUrl()][name] = version
				}
			}
			drain(t, s, states[min(i, len(states)-1)], held)
		}
		last := states[len(states)-1]
		drain(t, s, last, held)
		for _, sub := range s.types {
			if sub.begun && sub.all {
				compare(t, held[sub.typeURL], last.of(sub.typeURL))
			}
		}
	})
}

// drain answers until there is nothing to say.
func drain(t *testing.T, s *session, st *state, held map[string]replica) {
	t.Helper()
	for range 100 {
		r := s.next(st)
		if r == nil {
			return
		}
		if s.next(st) != nil {
			t.Fatal("a response before the last one was answered")
		}
		nonce := held[r.typeURL].receive(t, r)
		o, err := s.take(&discovery.DeltaDiscoveryRequest{TypeUrl: r.typeURL, ResponseNonce: nonce})
		if err != nil || !o.answered {
			t.Fatalf("an answer is %+v, %v", o, err)
		}
	}
	t.Fatal("there is always something to say")
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
