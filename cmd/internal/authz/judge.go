package authz

import (
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
	"github.com/culvert-mesh/culvert/workload/source/kube"
)

type ruleMeaning = kube.RuleMeaning

// neverMatches reports whether the rule certainly matches nothing.
func neverMatches(r *ruleMeaning) bool { return r.Never || never(r.Clauses) }

// judge is the agents' evaluator with one policy that denies what a rule matches.
type judge struct{ snapshot *policy.Snapshot }

// ruleSet returns the judge of one rule.
func ruleSet(r rule) judge {
	set := policy.New()
	set.Apply([]*policy.Policy{{Name: "rule", Scope: policy.Global, Action: policy.Deny, Rules: [][][]policy.Match{r}}}, nil)
	return judge{set.Snapshot()}
}

// matches reports whether the rule matches the connection.
func (j judge) matches(c policy.Connection) bool {
	return j.snapshot.Evaluate(&workload.Workload{}, c).Denied
}
