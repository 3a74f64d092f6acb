// Package origdst finds out where a redirected connection or query was going before
// the capture rules changed its destination.
//
// For TCP the kernel answers on the socket itself. For UDP there is one socket for
// all clients, so connection tracking is asked for the one entry whose answer
// direction is agent → client; that is one netlink message each way, never a dump.
//
// TCP and Conntrack.UDP are safe for concurrent use. Nothing is remembered.
package origdst
