// Package policy decides whether a connection may enter a workload, by the
// layer 4 part of Istio's AuthorizationPolicy.
//
// Sources convert what they receive to Policy values and write them into a
// Set. Evaluate is a pure function of a Snapshot of the Set, the destination
// workload and the facts of the connection; it names the policy that decided,
// and does so in the same order on every node.
//
// A Snapshot finds what matches by indexes over all policies that govern a
// workload: for each field, which rules a value leaves. So it costs nearly the
// same whether rules name principals, exclude ports or share all values but one,
// and nothing is allocated. Indexes are made when a workload is first asked
// about, in parts, of which a change of a policy makes one anew; an update by
// itself costs time in proportion to what it changes.
//
// It fails closed: a policy that has a part nobody can read denies everything
// that it would have governed, and a policy that a workload names but the Set
// does not hold is reported, so that the caller can wait for it and then
// refuse. Waiting, closing live connections and logging are the caller's.
//
// Concurrency: a Set has one writer at a time and any number of readers. Taking a
// Snapshot is one atomic load. Evaluate takes no lock for a workload that the
// Snapshot was asked about before; the first time it may wait for an index, see
// Snapshot.Prepared.
package policy
