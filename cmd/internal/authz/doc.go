// Package authz answers questions about who may talk to whom: who may reach a workload and why (World.Reach), what would
// happen to a connection and which rule decides (World.Decide), which policies keep observed connections working
// (World.Suggest), and what in policies is likely not what their author meant (World.Lint).
//
// It is pure: objects of Kubernetes in, answers out. It has no second reading of policies: the objects are translated by
// workload/source/kube, as in the controller, and judged by workload/policy, as in the agents. What it adds itself is to
// compare rules with each other (covers), which is never asked for a decision.
//
// Reading objects and flows from files, clusters and metrics, and printing, is left to the callers. A World does not change
// after it was made and may be used by any goroutine.
package authz
