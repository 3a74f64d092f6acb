// Package cni is Culvert's CNI plugin: it runs once for each pod that starts, after the
// plugins that made the pod's network, and hands the pod's network namespace to the
// agent of the node. The pod's containers start only after that, so not one packet of
// an enrolled pod leaves in plaintext.
//
// # ADD
//
//	no Kubernetes pod, excluded namespace, the mesh's own pod ──────────► pass
//	agent answers: enrolled, or stays out ──────────────────────────────► pass
//	agent answers: an error ────────────────────────────────────────────► fail
//	agent is away: pod and namespace from the API server, by Config.Selectors
//	     not selected ──────────────────────────────────────────────────► pass
//	     selected, or the API server does not tell ─────────────────────► fail
//
// To fail means that the runtime takes the pod's sandbox down and the kubelet tries
// again. Excluded namespaces and the mesh's own pods need neither agent nor API server:
// a cluster of one node comes up again by itself.
//
// CHECK decides in the same way, and asks whether the pod is in the state that it
// should be in. DEL tells the agent to give up the namespace and never fails. GC has
// nothing to do. STATUS writes the agent's state to the log; it fails for it only if
// Config.StatusNeedsAgent says so, because a runtime whose plugin fails STATUS starts
// no pod at all, the agent included.
//
// The previous plugin's result is returned byte for byte. The plugin keeps no state.
// It is a process of its own for each call; what it leaves to others is everything
// that happens inside of the namespace.
package cni
