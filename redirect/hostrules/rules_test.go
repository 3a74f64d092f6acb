package hostrules_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/culvert-mesh/culvert/redirect/hostrules"
	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/netnstest"
)

// finder is a kubelet that tests move about.
type finder struct {
	mu sync.Mutex
	k  hostrules.Kubelet
	e  error
}

func (f *finder) find() (hostrules.Kubelet, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.k, f.e
}

func (f *finder) set(k hostrules.Kubelet, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.k, f.e = k, err
}

func newRules(t *testing.T, ns *netns.NS, f *finder) *hostrules.Rules {
	t.Helper()
	r, err := hostrules.New(hostrules.Config{NS: ns, Kubelet: f.find})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func text(t *testing.T, r *hostrules.Rules) string {
	t.Helper()
	text, err := r.Text()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func holds(t *testing.T, r *hostrules.Rules, want bool, parts ...string) {
	t.Helper()
	all := text(t, r)
	for _, part := range parts {
		if strings.Contains(all, part) != want {
			t.Errorf("rules with %q: %v, want %v:\n%s", part, !want, want, all)
		}
	}
}

func healthy(t *testing.T, r *hostrules.Rules) {
	t.Helper()
	if found, err := r.Verify(); err != nil || len(found) > 0 {
		t.Fatalf("Verify: %v, %v", found, err)
	}
}

// TestAddRemove: addresses come and go, one that a new pod has is not taken from it by
// the end of the old, and a successor finds what was there.
func TestAddRemove(t *testing.T) {
	ns := netnstest.New(t)
	f := &finder{k: hostrules.Kubelet{UID: 7}}
	r := newRules(t, ns, f)
	if all := text(t, r); all != "" {
		t.Errorf("New has made rules:\n%s", all)
	}
	addr, addr6 := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")
	must(t, r.Add(addr, "a"))
	must(t, r.Add(netip.AddrFrom16(addr.As16()), "a")) // the same, as IPv6 writes it
	must(t, r.Add(addr6, "a"))
	healthy(t, r)
	holds(t, r, true, `10.0.0.1 comment "a"`, `fd00::1 comment "a"`)

	must(t, r.Add(addr, "b")) // the address belongs to another pod within a second
	must(t, r.Remove(addr, "a"))
	must(t, r.Remove(addr6, "b"))
	must(t, r.Remove(netip.MustParseAddr("10.9.9.9"), "a"))
	holds(t, r, true, `10.0.0.1 comment "b"`, `fd00::1 comment "a"`)

	next := newRules(t, ns, f) // an agent that was restarted
	must(t, next.Remove(addr6, "a"))
	holds(t, next, true, `10.0.0.1 comment "b"`)
	holds(t, next, false, "fd00::1")
	must(t, next.Apply(map[netip.Addr]string{addr6: "c"}))
	holds(t, next, true, `fd00::1 comment "c"`)
	holds(t, next, false, "10.0.0.1")
	healthy(t, next)

	must(t, next.Delete())
	must(t, next.Delete())
	if all := text(t, next); all != "" {
		t.Errorf("after Delete there is still:\n%s", all)
	}
}

// TestNftLists: administrators look at a node's rules with the nft of the node's system. That of Debian 12 (1.0.6) aborts
// at rules for bridges whose matches come in an order that it would not have written itself.
func TestNftLists(t *testing.T) {
	l := &lab{TB: t, host: netnstest.New(t)}
	for _, k := range []hostrules.Kubelet{{UID: 7}, {UID: 0}} {
		r := newRules(t, l.host, &finder{k: k})
		must(t, r.Apply(map[netip.Addr]string{netip.MustParseAddr("10.0.0.1"): "a", netip.MustParseAddr("fd00::1"): "a"}))
		for _, command := range []string{"nft list ruleset", "nft -j list ruleset", "nft list tables"} {
			all := l.shell(command)
			for _, family := range []string{"inet", "bridge"} {
				if !strings.Contains(all, "table "+family+" culvert-host") && !strings.Contains(all, `"family": "`+family+`", "name": "culvert-host"`) {
					t.Errorf("%s has no table %s:\n%s", command, family, all)
				}
			}
		}
		must(t, r.Delete())
	}
}

// TestRefusedPods: what cannot be of a pod is refused by name, and is in nobody's way.
func TestRefusedPods(t *testing.T) {
	r := newRules(t, netnstest.New(t), &finder{})
	good := netip.MustParseAddr("10.0.0.9")
	for _, pod := range []struct{ addr, uid string }{
		{"127.0.0.1", "a"}, {"::1", "a"}, {"0.0.0.0", "a"}, {"ff02::1", "a"}, {"fe80::1%eth0", "a"}, {"10.0.0.1", ""}, {"10.0.0.1", `"`},
		{"10.0.0.1", strings.Repeat("x", 121)},
	} {
		addr := netip.MustParseAddr(pod.addr)
		if err := r.Add(addr, pod.uid); err == nil {
			t.Errorf("%v was accepted by Add", pod)
		}
		must(t, r.Add(good, "after"))
		holds(t, r, true, `10.0.0.9 comment "after"`)
		err := r.Apply(map[netip.Addr]string{addr: pod.uid, good: "beside"})
		if err == nil || !strings.Contains(err.Error(), pod.addr) || strings.Contains(err.Error(), "10.0.0.9") {
			t.Errorf("Apply of %v: %v", pod, err)
		}
		holds(t, r, true, `elements = { 10.0.0.9 comment "beside" }`)
		healthy(t, r)
	}
	if err := r.Add(netip.Addr{}, "a"); err == nil {
		t.Error("the zero address was accepted")
	}
}

// TestAdoptedPods: what somebody has written into the sets that is no pod goes with the next repair.
func TestAdoptedPods(t *testing.T) {
	l := &lab{TB: t, host: netnstest.New(t)}
	f := &finder{k: hostrules.Kubelet{UID: 7}}
	r := newRules(t, l.host, f)
	must(t, r.Add(netip.MustParseAddr("10.0.0.1"), "a"))
	l.shell(`nft "add element inet culvert-host pods4 { 10.0.0.2 comment \"` + strings.Repeat("x", 125) + `\", 127.0.0.1 comment \"b\" }"`)
	next := newRules(t, l.host, f)
	if found, left, err := next.Repair(); err != nil || len(left) > 0 {
		t.Errorf("Repair: found %v, left %v, %v", found, left, err)
	}
	holds(t, next, true, `elements = { 10.0.0.1 comment "a" }`)
}

// TestDamage: what somebody does to the rules is named and put right, and what is others'
// stays.
func TestDamage(t *testing.T) {
	for _, tt := range []struct{ name, damage, want string }{
		{"table", "nft delete table inet culvert-host", "inet: table inet culvert-host is missing"},
		{"bridge", "nft delete table bridge culvert-host", "bridge: table bridge culvert-host is missing"},
		{"ruleset", "nft flush ruleset; nft add table inet others", "table inet culvert-host is missing"},
		{"chain", "nft flush chain inet culvert-host clean_forward", "inet: chain clean_forward: rule"},
		{"element", "nft delete element inet culvert-host pods4 '{ 10.0.0.1 }'", "set pods4: element 10.0.0.1"},
		{"bridged_element", "nft delete element bridge culvert-host pods4 '{ 10.0.0.1 }'", "bridge: set pods4: element 10.0.0.1"},
		{"widened", "nft insert rule inet culvert-host mark_kubelet ip dscp set 43", `rule "meta nfproto ipv4 ip dscp set 0x2b" does not belong here`},
		{"dormant", "nft add table inet culvert-host '{ flags dormant; }'", "has flags 0x1 instead of 0x0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := &lab{TB: t, host: netnstest.New(t)}
			l.shell("nft add table inet others; nft add table bridge others")
			r := newRules(t, l.host, &finder{k: hostrules.Kubelet{UID: 7}})
			must(t, r.Apply(map[netip.Addr]string{netip.MustParseAddr("10.0.0.1"): "a"}))
			before := text(t, r)
			l.shell(tt.damage)
			found, left, err := r.Repair()
			if err != nil || len(left) > 0 {
				t.Fatalf("Repair: left %v, %v", left, err)
			}
			if !strings.Contains(fmt.Sprint(found), "rules: "+tt.want) && !strings.Contains(fmt.Sprint(found), tt.want) {
				t.Errorf("found %v, want %q", found, tt.want)
			}
			healthy(t, r)
			if after := text(t, r); after != before {
				t.Errorf("before:\n%s\nafter:\n%s", before, after)
			}
			must(t, r.Delete())
			if rest := l.shell("nft list ruleset"); !strings.Contains(rest, "table inet others") || strings.Contains(rest, "culvert") {
				t.Errorf("after Delete:\n%s", rest)
			}
		})
	}
}

// TestKubeletMoves: nobody passes before the kubelet was found; when it comes back
// elsewhere, that is found and repaired; when it is away, what was known stays.
func TestKubeletMoves(t *testing.T) {
	ns := netnstest.New(t)
	f := &finder{e: errors.New("no kubelet yet")}
	r := newRules(t, ns, f)
	must(t, r.Add(netip.MustParseAddr("10.0.0.1"), "a"))
	healthy(t, r)
	holds(t, r, false, "skuid")
	holds(t, r, true, "clean_others", "10.0.0.1")

	f.set(hostrules.Kubelet{UID: 7}, nil)
	found, left, err := r.Repair()
	if err != nil || len(left) > 0 || len(found) == 0 || found[0].Kind != hostrules.KindMoved {
		t.Errorf("Repair found %v, left %v, %v", found, left, err)
	}
	holds(t, r, true, "skuid 7 ")

	f.set(hostrules.Kubelet{UID: 7, Cgroup: "/kubelet", CgroupID: 99, Levels: []uint32{1}}, nil)
	if found, _, err = r.Repair(); err != nil || len(found) == 0 || found[0].Kind != hostrules.KindMoved {
		t.Errorf("Repair found %v, %v", found, err)
	}
	holds(t, r, true, "skuid 7 socket cgroupv2 level 1 99 ")

	f.set(hostrules.Kubelet{}, errors.New("restarting"))
	healthy(t, r)
	must(t, r.Add(netip.MustParseAddr("10.0.0.2"), "b"))
	holds(t, r, true, "skuid 7 socket cgroupv2 level 1 99 ", "10.0.0.2")
}

// kinds are the kinds of findings, in order.
func kinds(found []hostrules.Finding) string {
	var out []string
	for _, f := range found {
		out = append(out, string(f.Kind))
	}
	return strings.Join(out, " ")
}

// TestSelfTest: the test tells who shares the kubelet's pass, also when only trying shows
// it, and leaves nothing behind.
func TestSelfTest(t *testing.T) {
	uid := uint32(os.Getuid())
	someCgroup := hostrules.Kubelet{Comm: "kubelet", UID: uid, Cgroup: "/x", CgroupID: 1 << 40, Levels: []uint32{1}}
	for _, tt := range []struct {
		name   string
		k      hostrules.Kubelet
		err    error
		damage string
		want   string
	}{
		{name: "closed", k: someCgroup},
		{name: "no_kubelet", err: errors.New("none"), want: "missing"},
		{name: "other_uid", k: hostrules.Kubelet{Comm: "kubelet", UID: uid + 7}, want: "uid"},
		{name: "own_uid", k: hostrules.Kubelet{Comm: "kubelet", UID: uid, NoCgroup: "cgroup v1"}, want: "uid uid"},
		{name: "shared", k: hostrules.Kubelet{Comm: "k3s-server", UID: uid, Cgroup: "/x", CgroupID: 1 << 40, Levels: []uint32{1}}, want: "shared"},
		{name: "rewritten", k: someCgroup, want: "uid",
			damage: "nft 'table inet others { chain output { type filter hook output priority 300; ip dscp set 43; }; }'"},
		{name: "forged_later", k: someCgroup, want: "forged",
			damage: "nft 'table inet others { chain output { type filter hook output priority 150; ip daddr 127.0.0.0/8 tcp flags syn ip dscp 43 ip dscp set 44; }; chain post { type filter hook postrouting priority 300; ip dscp 44 ip dscp set 43; }; }'"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := &lab{TB: t, host: netnstest.New(t)}
			r := newRules(t, l.host, &finder{k: tt.k, e: tt.err})
			must(t, r.Apply(map[netip.Addr]string{netip.MustParseAddr("10.0.0.1"): "a"}))
			if tt.damage != "" {
				l.shell(tt.damage)
			}
			before := text(t, r)
			found, err := r.SelfTest(t.Context())
			if err != nil || kinds(found) != tt.want {
				t.Errorf("found %v, %v, want %q", found, err, tt.want)
			}
			if after := text(t, r); after != before {
				t.Errorf("before:\n%s\nafter:\n%s", before, after)
			}
			healthy(t, r)
		})
	}
}

func TestSelfTestEnds(t *testing.T) {
	l := &lab{TB: t, host: netnstest.New(t)}
	l.shell("nft 'table inet others { chain input { type filter hook input priority 0; policy drop; }; }'")
	r := newRules(t, l.host, &finder{k: hostrules.Kubelet{UID: 7}})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if found, err := r.SelfTest(ctx); err == nil {
		t.Errorf("a test that cannot be has found %v", found)
	}
	holds(t, r, false, "self-test")
	healthy(t, r)
}

// TestTurns: calls from many goroutines end in what the last of each says.
func TestTurns(t *testing.T) {
	ns := netnstest.New(t)
	r := newRules(t, ns, &finder{k: hostrules.Kubelet{UID: 7}})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			addr := netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)})
			for _, err := range []error{r.Add(addr, "a"), r.Remove(addr, "b"), r.Add(addr, "c"), r.Remove(addr, "a")} {
				if err != nil {
					t.Error(err)
				}
			}
			if _, _, err := r.Repair(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	healthy(t, r)
	for i := range 8 {
		holds(t, r, true, fmt.Sprintf(`10.0.0.%d comment "c"`, i+1))
	}
}
