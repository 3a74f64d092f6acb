package kube

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// egressEntry is a ServiceEntry of the namespace ns, its status as allocated.
func egressEntry(t testing.TB, name, spec string, assigned ...HostAddress) *unstructured.Unstructured {
	u := custom(t, `{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: %s}, spec: %s}`, name, spec)
	var list []any
	for _, a := range assigned {
		list = append(list, map[string]any{"host": a.Host, "value": a.Addr.String()})
	}
	if list != nil {
		u.Object["status"] = map[string]any{"addresses": list}
	}
	return u
}

func aged(u *unstructured.Unstructured, years int) *unstructured.Unstructured {
	_ = unstructured.SetNestedField(u.Object, time.Unix(1_700_000_000, 0).AddDate(-years, 0, 0).UTC().Format(time.RFC3339), "metadata", "creationTimestamp")
	return u
}

func assigned(pairs ...string) []HostAddress {
	var out []HostAddress
	for i := 0; i+1 < len(pairs); i += 2 {
		out = append(out, HostAddress{pairs[i], netip.MustParseAddr(pairs[i+1])})
	}
	return out
}

// wants returns the addresses that the entry is to get, as text; "" when its
// status is right.
func (w *world) wants(name string) string {
	r, ok := w.reports[ref{kindServiceEntry, key{"ns", name}}]
	if !ok {
		return ""
	}
	return show(r.Addresses)
}

func show(of []HostAddress) string {
	var words []string
	for _, a := range of {
		words = append(words, a.Host+"="+a.Addr.String())
	}
	return strings.Join(words, " ")
}

// write writes what is wanted into the entry, as the leader does.
func (w *world) write(u *unstructured.Unstructured) *unstructured.Unstructured {
	w.t.Helper()
	r := w.reports[ref{kindServiceEntry, key{u.GetNamespace(), u.GetName()}}]
	spec, _, _ := unstructured.NestedMap(u.Object, "spec")
	next := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": u.GetAPIVersion(), "kind": u.GetKind(), "metadata": u.Object["metadata"], "spec": spec,
	}}
	var list []any
	for _, a := range r.Addresses {
		list = append(list, map[string]any{"host": a.Host, "value": a.Addr.String()})
	}
	next.Object["status"] = map[string]any{"addresses": list}
	w.set(next)
	return next
}

func TestAllocates(t *testing.T) {
	const dns = `resolution: DNS, ports: [{number: 80, name: http}]`
	kept := assigned("a.example.com", "240.240.3.4", "a.example.com", "2001:2::34")
	for _, tc := range []struct {
		name, spec string
		have       []HostAddress
		want       string // "" is that nothing is to be written
	}{
		{"kept", `{hosts: [a.example.com], ` + dns + `}`, kept, ""},
		{"static", `{hosts: [a.example.com], resolution: STATIC, endpoints: [{address: 192.0.2.1}]}`, kept, ""},
		{"elsewhere", `{hosts: [a.example.com], ` + dns + `}`, assigned("a.example.com", "198.18.0.1", "a.example.com", "2001:2::34"), ""},
		{"two-of-a-family", `{hosts: [a.example.com], ` + dns + `}`, assigned("a.example.com", "240.240.0.1", "a.example.com", "240.240.0.2", "a.example.com", "2001:2::1"), ""},
		{"case", `{hosts: [A.Example.com.], ` + dns + `}`, kept, ""},
		{"own-address", `{hosts: [a.example.com], addresses: [192.0.2.1], ` + dns + `}`, kept, "none"},
		{"own-range", `{hosts: [a.example.com], addresses: [192.0.2.0/24], ` + dns + `}`, kept, "none"},
		{"original-destination", `{hosts: [a.example.com], resolution: NONE}`, kept, "none"},
		{"hidden", `{hosts: [a.example.com], exportTo: ["~"], ` + dns + `}`, kept, "none"},
		{"wildcard", `{hosts: ["*.example.com"], ` + dns + `}`, assigned("*.example.com", "240.240.3.4"), "none"},
		{"dynamic-wildcard", `{hosts: ["*.example.com"], resolution: DYNAMIC_DNS}`, assigned("*.example.com", "240.240.3.4", "*.example.com", "2001:2::34"), ""},
		{"another-host", `{hosts: [b.example.com, a.example.com], ` + dns + `}`, append(kept, assigned("gone.example.com", "240.240.1.1")...), "a.example.com=240.240.3.4 a.example.com=2001:2::34 b.example.com=240.240.163.11 b.example.com=2001:2::1c69:2ae9"},
		{"one-family", `{hosts: [a.example.com], ` + dns + `}`, kept[:1], "a.example.com=240.240.3.4 a.example.com=2001:2::779:c7be"},
		{"nothing-wanted", `{hosts: [a.example.com], resolution: NONE}`, nil, ""},
		{"cannot-be-read", `{hosts: 5}`, kept, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			u := egressEntry(t, "ext", tc.spec, tc.have...)
			w.set(u)
			r, differs := w.reports[ref{kindServiceEntry, key{"ns", "ext"}}]
			differs = differs && show(r.Addresses) != show(r.HaveAddresses)
			got := show(r.Addresses)
			if differs && got == "" {
				got = "none"
			} else if !differs {
				got = ""
			}
			if got != tc.want {
				t.Errorf("wants %q, want %q", got, tc.want)
			}
		})
	}
	t.Run("opted-out", func(t *testing.T) {
		w := newWorld(t)
		u := egressEntry(t, "ext", `{hosts: [a.example.com], `+dns+`}`, kept...)
		u.SetLabels(map[string]string{labelAutoAllocate: "false"})
		w.set(u)
		if r, ok := w.reports[ref{kindServiceEntry, key{"ns", "ext"}}]; !ok || len(r.Addresses) > 0 {
			t.Errorf("wants %v", r.Addresses)
		}
	})
}

// What is written comes back, is published, and stays: other entries, their
// end, and another replica that takes over change nothing.
func TestAllocationIsStable(t *testing.T) {
	w := newWorld(t)
	one := egressEntry(t, "one", `{hosts: [a.example.com, b.example.com], resolution: DNS}`)
	w.set(one)
	if got := w.service("ns/a.example.com").VIPs; len(got) > 0 {
		t.Errorf("published with %v before they are written", got)
	}
	want := w.wants("one")
	if strings.Count(want, "=240.240.") != 2 || strings.Count(want, "=2001:2:") != 2 {
		t.Fatalf("wants %q", want)
	}
	one = w.write(one)
	if w.wants("one") != "" {
		t.Errorf("still wants %q", w.wants("one"))
	}
	if got := w.service("ns/b.example.com").VIPs; len(got) != 2 || !strings.Contains(want, "b.example.com="+got[0].Addr.String()) {
		t.Errorf("published with %v, want those of %q", got, want)
	}
	for i := range 20 {
		w.set(egressEntry(t, fmt.Sprint("other-", i), `{hosts: [a.example.org], resolution: DNS}`))
	}
	next := newWorld(t)
	next.set(egressEntry(t, "other", `{hosts: [a.example.org], resolution: DNS}`), one)
	if w.wants("one") != "" || next.wants("one") != "" {
		t.Error("somebody wants other addresses")
	}
	if n := len(w.st.reserved); n != 4+20*2 {
		t.Errorf("%d addresses are reserved", n)
	}
	for i := range 20 {
		w.drop(egressEntry(t, fmt.Sprint("other-", i), `{}`))
	}
	w.drop(one)
	if n := len(w.st.reserved) + len(w.st.reservedBy); n > 0 {
		t.Errorf("%d addresses are not free again", n)
	}
}

// Two entries never have one address.
func TestAllocationCollides(t *testing.T) {
	const spec = `{hosts: [%s.example.com], resolution: DNS}`
	both := func(host string) []HostAddress {
		return assigned(host+".example.com", "240.240.0.1", host+".example.com", "2001:2::1")
	}
	younger := egressEntry(t, "younger", fmt.Sprintf(spec, "b"), both("b")...)
	elder := aged(egressEntry(t, "elder", fmt.Sprintf(spec, "a"), both("a")...), 1)
	vips := func(w *world, host string) int { return len(w.service("ns/" + host + ".example.com").VIPs) }
	for name, order := range map[string][]any{"elder-first": {elder, younger}, "younger-first": {younger, elder}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			for _, u := range order {
				w.set(u)
			}
			if vips(w, "a") != 2 || vips(w, "b") != 0 {
				t.Errorf("the elder is published with %d, the younger with %d addresses", vips(w, "a"), vips(w, "b"))
			}
			if got := w.wants("younger"); w.wants("elder") != "" || got == "" || strings.Contains(got, "240.240.0.1 ") || strings.Contains(got, "=2001:2::1 ") {
				t.Errorf("the elder wants %q, the younger %q", w.wants("elder"), got)
			}
			moved := w.write(younger)
			if vips(w, "a") != 2 || vips(w, "b") != 2 || w.wants("younger") != "" {
				t.Errorf("after the move the elder has %d, the younger %d", vips(w, "a"), vips(w, "b"))
			}
			w.drop(moved)
			// Its address can be had again by who asks for it.
			w.set(younger)
			w.drop(elder)
			if vips(w, "b") != 2 || w.wants("younger") != "" {
				t.Errorf("after the elder's end the younger has %d and wants %q", vips(w, "b"), w.wants("younger"))
			}
		})
	}
	t.Run("named-by-another", func(t *testing.T) { // who names an address has it, also when younger
		w := newWorld(t)
		w.set(elder, egressEntry(t, "named", `{hosts: [c.example.com], addresses: [240.240.0.1], resolution: DNS}`))
		if got := w.wants("elder"); vips(w, "a") != 1 || vips(w, "c") != 1 || !strings.Contains(got, "=2001:2::1") || strings.Contains(got, "240.240.0.1 ") {
			t.Errorf("%d and %d addresses; wants %q", vips(w, "a"), vips(w, "c"), got)
		}
	})
	t.Run("pods-and-services", func(t *testing.T) {
		w := newWorld(t)
		w.set(elder, pod("p", []string{"240.240.0.1"}), service("s", []string{"2001:2::1"}))
		if got := w.wants("elder"); vips(w, "a") != 0 || got == "" || strings.Contains(got, "240.240.0.1 ") {
			t.Errorf("%d addresses; wants %q", vips(w, "a"), got)
		}
	})
	t.Run("one-entry-twice", func(t *testing.T) {
		w := newWorld(t)
		w.set(egressEntry(t, "x", `{hosts: [a.example.com, b.example.com], resolution: DNS}`, append(both("a"), both("b")...)...))
		if got := w.wants("x"); strings.Count(got, "=240.240.0.1 ") != 1 || strings.Count(got, "=") != 4 {
			t.Errorf("wants %q", got)
		}
	})
	t.Run("about-to-be-written", func(t *testing.T) { // by this replica, when another has written first
		w := newWorld(t)
		w.set(egressEntry(t, "mine", fmt.Sprintf(spec, "a")))
		theirs := strings.Fields(w.wants("mine"))[0]
		_, addr, _ := strings.Cut(theirs, "=")
		w.set(egressEntry(t, "theirs", fmt.Sprintf(spec, "b"), assigned("b.example.com", addr, "b.example.com", "2001:2::9")...))
		if w.wants("theirs") != "" || strings.Contains(w.wants("mine"), addr+" ") {
			t.Errorf("%s is wanted by %q; the other wants %q", addr, w.wants("mine"), w.wants("theirs"))
		}
	})
}

// Where no address is left that is said, and others go on.
func TestAllocationRunsOut(t *testing.T) {
	w := newWorld(t)
	p := pools()[0]
	for i := range p.size {
		w.st.reserve(key{"ns", "greedy"}, p.at(i))
	}
	if first, last := p.at(0).String(), p.at(p.size-1).String(); first != "240.240.0.1" || last != "240.240.255.254" {
		t.Errorf("from %s to %s", first, last)
	}
	w.set(egressEntry(t, "x", `{hosts: [a.example.com], resolution: DNS}`))
	if got := w.wants("x"); strings.Contains(got, "240.") || !strings.Contains(got, "2001:2:") {
		t.Errorf("wants %q", got)
	}
	if c := w.condition(kindServiceEntry, "x", conditionZtunnel); c.Status || !strings.Contains(c.Message, "no address is left") {
		t.Errorf("condition %+v", c)
	}
}

func BenchmarkAllocate(b *testing.B) {
	w := newWorld(b)
	for i := range 1000 {
		w.set(egressEntry(b, fmt.Sprint("e", i), fmt.Sprintf(`{hosts: [h%d.example.com], resolution: DNS}`, i)))
	}
	r := ref{kindServiceEntry, key{"ns", "e500"}}
	b.ReportAllocs()
	for b.Loop() {
		w.st.mark(r)
		w.st.allocate()
	}
}
