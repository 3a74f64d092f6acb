package policy_test

import (
	"testing"

	"github.com/culvert-mesh/culvert/workload/policy"
)

func TestChanges(t *testing.T) {
	set := policy.New()
	a, b := &policy.Policy{Namespace: "ns", Name: "a"}, &policy.Policy{Namespace: "ns", Name: "b"}
	set.Apply([]*policy.Policy{a, b}, nil)
	first := set.Snapshot()
	if upserts, removals := first.Changes(nil); len(upserts) != 2 || len(removals) != 0 {
		t.Errorf("since the beginning: %v, %v, want two upserts", upserts, removals)
	}
	denying := &policy.Policy{Namespace: "ns", Name: "a", Action: policy.Deny}
	set.Apply([]*policy.Policy{denying}, []string{"ns/b"})
	upserts, removals := set.Snapshot().Changes(first)
	if len(upserts) != 1 || upserts[0] != denying || len(removals) != 1 || removals[0] != "ns/b" {
		t.Errorf("changes are %v, %v, want the new a and the removal of b", upserts, removals)
	}
	if upserts, removals := first.Changes(first); upserts != nil || removals != nil {
		t.Errorf("no change is %v, %v", upserts, removals)
	}
}
