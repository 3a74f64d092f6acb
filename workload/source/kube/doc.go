// Package kube makes workloads, services and policies from the objects of a
// Kubernetes cluster, and keeps a workload.Store, a policy.Set and a netpol.Set
// equal to them.
//
// It watches Pods, Services, EndpointSlices, Nodes, Namespaces and, if asked
// to, NetworkPolicies and, as soon as their definitions exist in the cluster,
// Istio's ServiceEntry, WorkloadEntry, PeerAuthentication and
// AuthorizationPolicy, the Gateway API's Gateway and GatewayClass and
// ClusterNetworkPolicy. What arrives is trimmed at once to what is
// used; only the trimmed form is kept.
//
// Translation is pure (files translate_*.go): trimmed objects in, workloads,
// services and policies out. It fails closed: a policy with a part that nobody
// can read or enforce denies what it governs. Conditions that users are to see
// on their objects are computed here (Reports) and written by package status.
//
// Concurrency: one goroutine, that of Run, translates and writes. It collects
// changes for a moment and applies them as one batch, and an object that
// changes costs time in proportion to what refers to it. Synced, Pod,
// PodsOnNode and Reports may be called by any goroutine at any time.
package kube
