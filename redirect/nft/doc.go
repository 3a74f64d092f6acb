// Package nft holds the capture rules of one network namespace: which rules there
// should be (Desired), putting them there in one transaction (Table.Apply), and
// reading what the kernel really has (Read). Both sides are Tables, and Table.Text
// writes each as the same canonical text, so comparing is comparing lines.
//
// Everything lives in one private table, `inet culvert`. No other table is read,
// changed or relied upon. It speaks netlink only; no nft program is needed. The
// text happens to be valid input for one, which the tests use as an independent
// check.
//
// The package leaves policy routing, sysctls and the decision when to apply to
// package redirect. It starts no goroutine and holds no state; all functions may be
// called concurrently, for the same namespace too (the kernel serialises).
//
// # The rules
//
// They are those of Istio's ambient mode, so that either side of a node can be
// replaced, with two changes.
//
// First, TCP is captured by its SYN only. A connection older than the rules becomes
// known to connection tracking in mid-stream; redirecting that packet would reset it.
//
// Second, because of the first, the guard chains. The entry of such an older
// connection is not translated, and it stays for seconds after a reset. A SYN
// between the same ports meets it and would pass the redirect rules by, in either
// direction: a stranger would reach the application past its policy, or an
// application's bytes would leave in the clear. So a SYN that ought to have been
// redirected and was not is dropped; its sender repeats it, and when the entry is
// gone it is captured.
//
//	in   ─► raw ─► [conntrack] ─► mangle: agent's mark? remember 0x111
//	          ─► nat: SYN ─► 15006 ─► guard_input ─► socket
//	out  ─► raw ─► [conntrack] ─► mangle: 0x111 remembered? mark, route again
//	          ─► nat: DNS ─► 15053, SYN ─► 15001 ─► guard_output ─► wire
package nft
