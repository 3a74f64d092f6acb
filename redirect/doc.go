// Package redirect captures the traffic of one network namespace for the agent:
// nftables rules (package nft), policy routing for the answers of the application,
// and the sysctls without which captured connections break in rare cases.
//
// A Capture is what should be; the kernel is what is. Apply makes it so, Verify
// tells the differences in words, Repair is both. There is no other state: what is
// needed to undo the work is kept inside the namespace, so a successor of this
// process can verify, repair and leave too.
//
// # Order
//
//	Reserve ─► listeners up ─► Apply ─► (Verify, Repair)* ─► StopNew ─► drain ─► Delete
//
// Reserve keeps the agent's ports from being taken as ephemeral ones. From Apply on,
// traffic is captured; without listeners it is refused, never leaked. StopNew lets
// new connections pass while the captured ones go on; Delete ends those that are
// still there.
//
// # Connection tracking
//
// A redirected connection lives only as long as its tracking entry. Once one side
// has closed, the kernel forgets the entry after 60 s (close_wait) or 120 s
// (fin_wait) of silence, and an answer that takes longer arrives without
// translation: the application gets a reset in place of it. The timeouts are raised
// to HalfCloseTimeout. The cost is small, because an entry outlives its sockets only
// if a segment gets lost: FIN and RST of either end move it on to states that keep
// their short timeouts, and the agent's socket always ends with one of them.
//
// A segment that tracking calls invalid is not translated either. One that is
// outside of the window that tracking believes in (it may have missed something while
// the rules were damaged; on older kernels a late duplicate is enough) would so reach
// the application's port instead of the agent's and be answered by a reset, which
// ends the connection at its client. So tracking is made liberal: only a reset can be
// invalid. Nothing is lost by that, for the sockets on both sides check sequence
// numbers themselves.
//
// # Successors
//
// Two agents may listen side by side (SO_REUSEPORT) while one takes over from the
// other. The kernel resets what waits at a listener that closes, so connections would
// be lost with every upgrade of a busy pod; tcp_migrate_req makes it move them to the
// other listener.
//
// The package leaves to others: which namespaces (podset), the listeners, and the
// identity of the pod. All methods of Capture may be called concurrently for
// different namespaces; for one namespace the caller serialises.
package redirect
