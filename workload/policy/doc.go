// Package policy decides whether a connection may enter a workload, by the
// layer 4 part of Istio's AuthorizationPolicy.
//
// Sources convert what they receive to Policy values and write them into a
// Set. Evaluate is a pure function of a Snapshot of the Set, the destination
// workload and the facts of the connection; it names the policy that decided,
// and does so in the same order on every node.
//
// It fails closed: a policy that has a part nobody can read denies everything
// that it would have governed, and a policy that a workload names but the Set
// does not hold is reported, so that the caller can wait for it and then
// refuse. Waiting, closing live connections and logging are the caller's.
//
// Concurrency: a Set has one writer at a time and any number of readers;
// taking a Snapshot is one atomic load and Evaluate takes no lock.
package policy
