// Package hostrules marks, in the host's network namespace, the connections that the
// kubelet opens to enrolled pods of its node, so that its probes reach the
// applications though nothing else gets in without mTLS.
//
//	kubelet ─► output: from the kubelet's socket, to an enrolled pod: DSCP ─► pod: from
//	the node's address, with that DSCP: straight to the application
//
// The mark is a DSCP value (Mark) on the first segment, not another source address:
// NetworkPolicies and the application go on seeing the node's own address. Everybody
// else's packets to these pods lose the mark, whether they come from a process of the
// host, are forwarded by it, or pass from port to port of one of its bridges.
//
// The kubelet is known by the uid of its socket and, where cgroup v2 is in use, by the
// cgroup as well. What that leaves open on a node is what SelfTest tells.
//
// Rules are the tables `inet culvert-host` and `bridge culvert-host`; no other table is
// read or changed. They outlive the process: a successor adopts the addresses that it
// finds. Stale addresses are harmless, because only pods whose rules trust the mark
// (redirect.Options.ProbeMark) heed it.
//
// The package leaves to others which pods are enrolled and when to Verify. It starts no
// goroutine. Methods of Rules may be called concurrently; they take turns.
package hostrules
