// Package proxy is the data plane of one node: it joins applications, tunnels and what the mesh knows.
//
// A Pod serves three listeners that live in the pod's network namespace: outbound (15001, what its applications dial),
// inbound (15008, HBONE from peers) and passthrough (15006, plaintext from outside the mesh). Proxy holds what the pods
// have in common: the flows, and the watchers that end live connections when a policy, a workload or a revocation list
// changes.
//
//	app ─► outbound: route.Make ─► network policy ─► pool: tunnel to the peer ─► relay
//	peer ─► inbound: TLS, CONNECT ─► route.Inbound ─► policy, network policy ─► app socket ─► relay
//	plaintext ─► passthrough: policy without identity ─► app socket ─► relay.Pair
//
// It creates no namespace, reads no file and knows no rules of redirection: sockets, original destinations, certificates
// and host names come through Config and PodConfig, so that all of it runs in a test without privileges.
//
// Accepting and deciding happen in goroutines, moving bytes on loops. A connection to a peer that a tunnel leads to
// already is decided in the accepting goroutine and costs one Post; what has to wait gets a goroutine of its own. All
// exported methods may be called concurrently.
package proxy
