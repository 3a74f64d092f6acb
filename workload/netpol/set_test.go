package netpol_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/workload/netpol"
)

func key(kind netpol.Kind, namespace, name string) netpol.Key {
	return netpol.Key{Kind: kind, Namespace: namespace, Name: name}
}

func TestApply(t *testing.T) {
	set := netpol.New()
	before := set.Snapshot()
	if before.Ready() || before.Version() != 0 || len(before.Objects()) != 0 {
		t.Errorf("a new set: ready %t, version %d, objects %v", before.Ready(), before.Version(), before.Objects())
	}
	p := np("p", all, anyone)
	if !set.Apply(append(world(), p), nil) {
		t.Error("nothing changed")
	}
	select {
	case <-before.Changed():
	default:
		t.Error("the change was not told")
	}
	snap := set.Snapshot()
	if len(before.Objects()) != 0 || snap.Version() != 1 {
		t.Errorf("the old snapshot changed, or the version (%d) did not", snap.Version())
	}
	if set.Apply([]netpol.Object{np("p", all, anyone)}, []netpol.Key{key(netpol.KindPolicy, "", "p"), key(0, "", "p")}) {
		t.Error("an equal policy changed the set")
	}
	for _, o := range append(world(), p) {
		if got := snap.Object(o.Key()); got == nil || got.Key() != o.Key() {
			t.Errorf("%s: %v", o.Key(), got)
		}
	}
	var keys []string
	for _, o := range snap.Objects() {
		keys = append(keys, o.Key().String())
	}
	if got, want := strings.Join(keys, ", "), "netpol a/p, pod a/db, pod a/web, pod b/web, namespace a, namespace b, node n1, node n2"; got != want {
		t.Errorf("objects %s, want %s", got, want)
	}

	if !set.Apply(nil, []netpol.Key{key(netpol.KindPolicy, "a", "p"), key(netpol.KindNode, "", "n1"), key(netpol.KindNamespace, "", "b"), key(netpol.KindPod, "", "a/db")}) {
		t.Error("removals changed nothing")
	}
	if got := len(set.Snapshot().Objects()); got != 4 {
		t.Errorf("%d objects are left", got)
	}
	if !set.Replace([]netpol.Object{p}) || len(set.Snapshot().Objects()) != 1 || set.Replace([]netpol.Object{p}) {
		t.Errorf("replaced: %v", set.Snapshot().Objects())
	}
	if !set.Replace(nil) || len(set.Snapshot().Objects()) != 0 {
		t.Errorf("replaced by nothing: %v", set.Snapshot().Objects())
	}
}

func TestReady(t *testing.T) {
	set := netpol.New()
	changed := set.Changed()
	set.SetReady(true)
	<-changed
	snap := set.Snapshot()
	if !snap.Ready() {
		t.Error("not ready")
	}
	set.SetReady(true)
	if set.Snapshot() != snap {
		t.Error("a new state without a change")
	}
	set.Apply(world(), nil)
	if !set.Snapshot().Ready() {
		t.Error("not ready after a change")
	}
	if set.SetReady(false); set.Snapshot().Ready() {
		t.Error("still ready")
	}
}

func TestChanges(t *testing.T) {
	set := netpol.New()
	set.Apply(append(world(), np("p", all), np("q", all), cnp(admin, "c", 0, anyone)), nil)
	since := set.Snapshot()
	upserts, removals := since.Changes(nil)
	if len(upserts) != 10 || len(removals) != 0 {
		t.Errorf("of an empty set: %d, %d", len(upserts), len(removals))
	}
	set.Apply([]netpol.Object{np("p", all, anyone), pod("c/new", "c", nil), &netpol.Namespace{Name: "c"}},
		[]netpol.Key{key(netpol.KindPolicy, "a", "q"), key(netpol.KindNamespace, "", "b"), key(netpol.KindNode, "", "n2")})
	upserts, removals = set.Snapshot().Changes(since)
	var got []string
	for _, o := range upserts {
		got = append(got, "+"+o.Key().String())
	}
	for _, k := range removals {
		got = append(got, "-"+k.String())
	}
	slices.Sort(got)
	want := []string{"+namespace c", "+netpol a/p", "+pod c/new", "-namespace b", "-netpol a/q", "-node n2"}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	copied := netpol.New()
	copied.Apply(since.Objects(), nil)
	copied.Apply(upserts, removals)
	if a, b := copied.Snapshot().Objects(), set.Snapshot().Objects(); !slices.Equal(a, b) {
		t.Errorf("changes lead to %v, want %v", a, b)
	}
}

// TestSelectionFollows asks after each kind of change that can make other policies select a pod.
func TestSelectionFollows(t *testing.T) {
	set := netpol.New()
	set.Apply(world(), nil)
	q := conn{}.query()
	expect := func(after string, want ...string) {
		t.Helper()
		var got []string
		for _, k := range set.Snapshot().Selecting("a/web", in) {
			got = append(got, k.String())
		}
		if !slices.Equal(got, want) {
			t.Errorf("after %s: %v, want %v", after, got, want)
		}
		if d := set.Snapshot().Evaluate(q); d.Allowed != (len(want) == 0) {
			t.Errorf("after %s: %+v", after, d)
		}
	}
	apply := func(o ...netpol.Object) { set.Apply(o, nil) }
	forTeam := func(tier netpol.Tier, team string) *netpol.Policy {
		p := cnp(tier, "c", 0, act(deny, anyone))
		p.Namespaces = ptr(is("team", team))
		return p
	}
	old := set.Snapshot()
	expect("nothing")
	apply(np("p", all))
	expect("a policy", "netpol a/p")
	apply(np("p", *others))
	expect("a policy for others")
	apply(np("p", *webs))
	expect("a policy for this one", "netpol a/p")
	apply(pod("a/web", "a", map[string]string{"app": "changed"}))
	expect("other labels")
	apply(pod("a/web", "a", map[string]string{"app": "web"}))
	expect("the old labels", "netpol a/p")
	apply(pod("a/web", "b", map[string]string{"app": "web"}))
	expect("another namespace")
	apply(pod("a/web", "a", map[string]string{"app": "web"}), forTeam(admin, "x"))
	expect("a policy of the cluster", "cluster-netpol c", "netpol a/p")
	apply(&netpol.Namespace{Name: "a", Labels: netpol.MakeLabels(map[string]string{"team": "y"})})
	expect("another team", "netpol a/p")
	apply(forTeam(admin, "y"))
	expect("a policy for that team", "cluster-netpol c", "netpol a/p")
	apply(forTeam(baseline, "y"))
	expect("another tier", "netpol a/p", "cluster-netpol c")
	set.Apply(nil, []netpol.Key{key(netpol.KindPolicy, "a", "p")})
	expect("no policy of the namespace", "cluster-netpol c")
	set.Apply(nil, []netpol.Key{key(netpol.KindPolicy, "", "c")})
	expect("no policy")
	if d := old.Evaluate(q); !d.Allowed {
		t.Errorf("the old snapshot has changed: %+v", d)
	}
}

func TestSelectingOrder(t *testing.T) {
	set := netpol.New()
	set.Apply(append(world(), np("b", all), np("a", all), cnp(baseline, "z", 0, anyone), cnp(baseline, "y", 1, anyone),
		cnp(admin, "x", 2, anyone), cnp(admin, "w", 2, anyone), cnp(admin, "v", 3, anyone), cnp(admin, "u", -1, anyone)), nil)
	var got []string
	for _, k := range set.Snapshot().Selecting("a/web", out) {
		got = append(got, k.Name)
	}
	if want := "u w x v a b z y"; strings.Join(got, " ") != want {
		t.Errorf("%v, want %s", got, want)
	}
	if set.Snapshot().Selecting("none", in) != nil || set.Snapshot().Selecting("a/web", 7) != nil {
		t.Error("something selects nothing")
	}
}

func TestNodesWithOneAddress(t *testing.T) {
	set := netpol.New()
	edge := cnp(admin, "c", 0, act(deny, from(netpol.Peer{Nodes: ptr(is("pool", "edge"))})))
	other := &netpol.Node{Name: "n3", Addresses: addrs("192.168.0.1", "192.168.0.1")}
	set.Apply(append(world(), edge, other), nil)
	q := conn{dir: out, peer: "-", addr: "192.168.0.1"}.query()
	expect := func(allowed bool) {
		t.Helper()
		if d := set.Snapshot().Evaluate(q); d.Allowed != allowed {
			t.Errorf("%+v", d)
		}
	}
	expect(false)
	set.Apply(nil, []netpol.Key{other.Key()})
	expect(false)
	set.Apply([]netpol.Object{other}, []netpol.Key{key(netpol.KindNode, "", "n1")})
	expect(true)
}

func TestFault(t *testing.T) {
	set := netpol.New()
	bad := np("bad", all, netpol.Rule{AnyPeer: true, AnyPort: true, Invalid: "no words for it"})
	set.Apply([]netpol.Object{np("p", all), bad}, nil)
	snap := set.Snapshot()
	if err := snap.Fault(np("p", all).Key()); err != nil {
		t.Error(err)
	}
	if err := snap.Fault(bad.Key()); err == nil || err.Error() != "rule ingress 0: no words for it\nrule egress 0: no words for it" {
		t.Error(err)
	}
	if err := bad.Validate(); err == nil {
		t.Error("it is valid")
	}
	if err := snap.Fault(key(netpol.KindPolicy, "", "none")); err != nil {
		t.Error(err)
	}
}

func TestNoAllocation(t *testing.T) {
	set, q := benchSet(100)
	snap := set.Snapshot()
	for _, q := range []netpol.Query{q, {Subject: "subject", Peer: "subject", Port: 1}, {Subject: "peer", Peer: "subject", Port: 1}} {
		snap.Evaluate(q)
		if n := testing.AllocsPerRun(100, func() {
			if !snap.Evaluate(q).Allowed {
				t.Error("not allowed")
			}
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
}

func TestNames(t *testing.T) {
	for _, s := range []interface{ String() string }{
		netpol.Op(99), netpol.Protocol(99), netpol.Action(99), netpol.Tier(99), netpol.Kind(99), netpol.Direction(99),
	} {
		if s.String() != "unknown(99)" {
			t.Error(s.String())
		}
	}
}
