// Package netpol decides whether Kubernetes' network policies let a pod talk
// to a peer: NetworkPolicy and ClusterNetworkPolicy (tiers Admin and
// Baseline), in both directions.
//
// Sources convert what they receive to Policy, Pod, Namespace and Node values
// and write them into a Set. Evaluate is a pure function of a Snapshot of the
// Set and a Query; it names the policy and the rule that decided, the same
// ones on every node. Finding out which pod a peer is, and proving it, is the
// caller's, and so are waiting for what is not known yet, closing live
// connections and logging.
//
// It fails closed and is never wider than what is written: what cannot be
// understood allows nothing and denies what it would have governed, and a pod
// that nobody has proven to be the peer is let in by no rule about pods and
// met by every rule that denies some.
//
// Concurrency: a Set has one writer at a time and any number of readers;
// taking a Snapshot is one atomic load and Evaluate takes no lock.
package netpol
