// Package relay moves bytes between an application's TCP socket and a stream of a tunnel (Relay), or between two TCP
// sockets (Pair), on the event loop that owns them.
//
// Both keep half-close: the end of one direction ends that direction only. An abort on one side becomes an abort on the
// other, never a clean end (RFC 9113 section 8.5). What a slow reader does not take stays in its own relay, bounded by
// the credit of its stream or by one read, and holds back only its own sender. An idle relay holds no buffer.
package relay
