// Package kubenode keeps the pods of one Kubernetes node enrolled: it follows pods and namespaces, decides with package
// enrol, finds the pods' network namespaces, gives them to a podset.Set, and says on the pod what was achieved.
//
//	labels, annotations ─► decision ─► namespace (CNI plugin, else /proc) ─► Set ─► probes ─► certificate ─► enabled
//
// # State
//
// Intent is in labels, what was achieved is in the annotation ambient.istio.io/redirection, which only this package
// writes: "enabled" when rules, listeners and certificate are in place, always last; "pending" while something of it is
// missing or being undone; absent when nothing is left in the pod. Other agents send HBONE to enabled pods only.
//
// The package is level-triggered: each event queues the pod's name, and reconciling compares what should be with what is.
// A pod is bound to its network namespace by its UID and the descriptor that the Set holds; its address is checked
// besides and never trusted alone, so an address that another pod has a second later changes nothing for either.
//
// # Doubt
//
// A pod that should be in and cannot be stays as it is and is tried again; it is never announced, and a starting one does
// not start. Trouble with the API server takes nobody out: what was known goes on.
//
// The package leaves to others what capturing and serving are (podset and its Runner), how /proc is read (procns), the
// rules of the host (hostrules) and the CNI plugin. All methods of Agent may be called concurrently.
package kubenode
