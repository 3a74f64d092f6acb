// Package netns holds network namespaces by descriptor and creates sockets
// inside them.
//
// A namespace matters only at the moment a socket is created; afterwards the
// socket stays in it for life and may be used from any thread. So the package
// offers just two ways in: Socket, cheap enough for every connection, and Do,
// for everything else that asks the kernel about "the current namespace"
// (netlink sockets, /proc/sys/net). Both run on a fresh goroutine locked to its
// thread; a thread that cannot be brought home is never given back to the Go
// scheduler.
//
// What must not happen inside Do: starting goroutines that need the namespace,
// resolving names, and net.Dialer with anything but an address literal: all of
// them continue on other threads.
//
// The package knows nothing of rules, pods or marks; see redirect for those.
// All methods of NS are safe for concurrent use, Close included.
//
//	caller ──► goroutine, LockOSThread ──► setns(pod) ──► socket() ──► setns(home) ──► unlock
//	                                                                     └─ fails: thread dies
package netns
