package netpolcheck_test

import (
	"reflect"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/culvert-mesh/culvert/cmd/internal/netpolcheck"
)

// FuzzCheck judges whatever can be read. A patch adds ports alone, and a policy that is patched is not cut any more.
func FuzzCheck(f *testing.F) {
	f.Add(policy("p", web+"ingress: [{from: ["+client+"], ports: [{port: 80}]}], egress: [{ports: [{port: a, protocol: UDP}, {port: 1, endPort: 9}]}]"), true, true)
	f.Add(policy("p", "podSelector: {matchExpressions: [{key: a, operator: NotIn, values: [b]}]}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, x]}}, {}], ports: [{}]}]"), false, true)
	f.Add(clusterPolicy("c", "Admin", 1, "subject: {namespaces: {}}, ingress: [{action: Deny, from: [{}], protocols: [{}, {tcp: {}}]}], egress: [{action: Pass, to: [{networks: [::/0, y]}]}]"), false, false)
	f.Add(pod("shop", "a", "app: web", "containers: [{ports: [{name: a, containerPort: 15008}]}]"), true, false)
	f.Fuzz(func(t *testing.T, text string, whole, dns bool) {
		object := map[string]any{}
		if yaml.NewYAMLOrJSONDecoder(strings.NewReader(text), 4096).Decode(&object) != nil || len(object) == 0 {
			return
		}
		u := &unstructured.Unstructured{Object: object}
		in := netpolcheck.Input{Whole: whole, Mesh: netpolcheck.Mesh{DNS: dns, Assume: []string{netpolcheck.Everywhere}}}
		p, err := in.Add(u, "shop")
		if err != nil {
			return
		}
		if p == nil {
			netpolcheck.Check(in)
			return
		}
		before := p.DeepCopy()
		found := netpolcheck.Check(in)
		netpolcheck.CompanionSpec(p, in.Mesh)
		if !reflect.DeepEqual(before, p) {
			t.Fatal("the policy was changed")
		}
		if err := netpolcheck.Apply(object, found[0].Patch); err != nil {
			t.Fatal(err)
		}
		again := netpolcheck.Input{Whole: whole, Mesh: in.Mesh}
		patched, err := again.Add(u, "shop")
		if err != nil {
			t.Fatal(err)
		}
		if f := netpolcheck.Check(again)[0]; f.State == netpolcheck.Cut || len(f.Patch) > 0 {
			t.Fatalf("after the patch: %+v", f)
		}
		for i := range patched.Spec.Ingress {
			patched.Spec.Ingress[i].Ports = before.Spec.Ingress[i].Ports
		}
		for i := range patched.Spec.Egress {
			patched.Spec.Egress[i].Ports = before.Spec.Egress[i].Ports
		}
		if !reflect.DeepEqual(before, patched) {
			t.Fatal("the patch changed more than ports")
		}
	})
}
