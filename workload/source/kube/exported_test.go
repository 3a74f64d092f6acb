package kube

import (
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/culvert-mesh/culvert/workload"
)

func TestExportTo(t *testing.T) {
	for _, tc := range []struct {
		name, exportTo string
		there          bool
		visibility     workload.Visibility
		fault          string
		to             []string
	}{
		{"absent", `[]`, true, workload.VisibilityPublic, "", nil},
		{"all", `["*"]`, true, workload.VisibilityPublic, "", nil},
		{"own", `["."]`, true, workload.VisibilityNamespace, "", nil},
		{"own-by-name", `[ns]`, true, workload.VisibilityNamespace, "", nil},
		{"own-and-all", `[".", "*"]`, true, workload.VisibilityPublic, "", nil},
		{"nobody", `["~"]`, false, 0, "", nil},
		{"nobody-and-own", `["~", "."]`, true, workload.VisibilityNamespace, "", nil},
		{"own-and-others", `[other, "."]`, true, workload.VisibilityNamespace, "", []string{"ns", "other"}},
		{"others", `[third, other, other]`, true, workload.VisibilityNamespace, "", []string{"other", "third"}},
		{"others-and-all", `[other, "*"]`, true, workload.VisibilityPublic, "", nil},
		{"pattern", `["o*"]`, false, 0, `exportTo has "o*", which is no namespace`, nil},
		{"pattern-and-other", `["o*", other]`, true, workload.VisibilityNamespace, `exportTo has "o*", which is no namespace`, []string{"other"}},
		{"empty-word", `[""]`, false, 0, `exportTo has "", which is no namespace`, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			w.set(egressEntry(t, "x", `{hosts: [a.example.com], resolution: STATIC, addresses: [192.0.2.1], endpoints: [{address: 192.0.2.2}], exportTo: `+tc.exportTo+`}`))
			snap := w.store.Snapshot()
			if n := snap.ServiceCount() + snap.WorkloadCount(); tc.there != (n == 2) || !tc.there && n > 0 {
				t.Errorf("%d objects, there: %t", n, tc.there)
			}
			if tc.there {
				if s := w.service("ns/a.example.com"); s.Visibility != tc.visibility || !slices.Equal(s.ExportTo, tc.to) {
					t.Errorf("visible to %s %v, want %s %v", s.Visibility, s.ExportTo, tc.visibility, tc.to)
				}
			}
			c := w.condition(kindServiceEntry, "x", conditionZtunnel)
			if tc.fault == "" && c.Type != "" || c.Status || !strings.Contains(c.Message, tc.fault) {
				t.Errorf("condition %+v, want %q", c, tc.fault)
			}
		})
	}
}

// An entry that only its own namespace sees is never the one that others mean.
func TestPrivateIsNotCanonical(t *testing.T) {
	w := newWorld(t)
	private := aged(egressEntry(t, "x", `{hosts: [a.example.com], resolution: STATIC, exportTo: ["."]}`), 1)
	public := egressEntry(t, "z", `{hosts: [a.example.com], resolution: STATIC}`)
	public.SetNamespace("other")
	w.set(private, public)
	if w.service("ns/a.example.com").Canonical || !w.service("other/a.example.com").Canonical {
		t.Error("the private one is canonical")
	}
	if s := w.store.Snapshot().ServiceByHost("a.example.com", "third"); s == nil || s.Namespace != "other" {
		t.Errorf("a third namespace means %v", s)
	}
	w.drop(public)
	if w.service("ns/a.example.com").Canonical {
		t.Error("the private one became canonical")
	}
}

func TestEntryFaults(t *testing.T) {
	for _, tc := range []struct {
		name    string
		objects []*unstructured.Unstructured
		want    string // in the condition of x; "" is none
	}{
		{"fine", []*unstructured.Unstructured{egressEntry(t, "x", `{hosts: [a.example.com], addresses: [192.0.2.1], ports: [{number: 80, name: http}], resolution: STATIC}`)}, ""},
		{"unreadable", []*unstructured.Unstructured{egressEntry(t, "x", `{hosts: 5}`)}, "read spec"},
		{"host", []*unstructured.Unstructured{egressEntry(t, "x", `{hosts: ["a_b/c"]}`)}, `host "a_b/c" is no name`},
		{"address", []*unstructured.Unstructured{egressEntry(t, "x", `{hosts: [a.example.com], addresses: [300.1.1.1]}`)}, `address "300.1.1.1" is none`},
		{"port", []*unstructured.Unstructured{egressEntry(t, "x", `{hosts: [a.example.com], ports: [{number: 65536, name: x}]}`)}, "port 65536 with target 0 is none"},
		{"endpoint", []*unstructured.Unstructured{egressEntry(t, "x", `{hosts: [a.example.com], resolution: STATIC, endpoints: [{address: "a b"}]}`)}, `host "a b" is no name`},
		{"endpoint-twice", []*unstructured.Unstructured{egressEntry(t, "x", `{hosts: [a.example.com], resolution: STATIC, endpoints: [{address: 192.0.2.1}, {address: 192.0.2.1}]}`)}, "endpoint 192.0.2.1 is there twice"},
		{"host-of-older", []*unstructured.Unstructured{
			egressEntry(t, "x", `{hosts: [a.example.com], resolution: STATIC}`), aged(egressEntry(t, "z", `{hosts: [a.example.com], resolution: STATIC}`), 1),
		}, "1 of its hosts belong to an older object"},
		{"address-of-another", []*unstructured.Unstructured{
			egressEntry(t, "x", `{hosts: [a.example.com], resolution: STATIC, addresses: [192.0.2.1]}`), egressEntry(t, "z", `{hosts: [b.example.com], resolution: STATIC, addresses: [192.0.2.1]}`),
		}, "address 192.0.2.1 is that of ns/z too"},
		{"address-of-another-original", []*unstructured.Unstructured{
			egressEntry(t, "x", `{hosts: [a.example.com], addresses: [192.0.2.1]}`), egressEntry(t, "z", `{hosts: [b.example.com], addresses: [192.0.2.1]}`),
		}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			for _, o := range tc.objects {
				w.set(o)
			}
			w.set(egressEntry(t, "good", `{hosts: [good.example.com], addresses: [192.0.2.9], resolution: STATIC}`))
			c := w.condition(kindServiceEntry, "x", conditionZtunnel)
			if tc.want == "" && c.Type != "" || tc.want != "" && (c.Type == "" || c.Status || !strings.Contains(c.Message, tc.want)) {
				t.Errorf("condition %+v, want %q", c, tc.want)
			}
			if c := w.condition(kindServiceEntry, "good", conditionZtunnel); c.Type != "" || len(w.service("ns/good.example.com").VIPs) != 1 {
				t.Errorf("another entry suffers: %+v", c)
			}
			// The fault goes with its cause.
			if len(tc.objects) > 1 {
				w.drop(tc.objects[1])
				if c := w.condition(kindServiceEntry, "x", conditionZtunnel); c.Type != "" {
					t.Errorf("condition %+v after its cause is gone", c)
				}
			}
		})
	}
}
