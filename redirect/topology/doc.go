// Package topology builds small networks of the real kernel: nodes and pods as network namespaces on this machine.
//
// It serves `culvert demo`, the lab and the benchmarks. It makes namespaces, links, addresses and routes, and starts
// processes inside; it knows nothing of capture rules, agents or identities.
//
//	     pod a            pod b                          pod c
//	 eth0 10.1.1.2    eth0 10.1.1.3                  eth0 10.1.2.2
//	      └──────┬────────────┘                           │
//	node n1    br0 10.1.1.1                       n2    br0 10.1.2.1
//	           wire0 192.168.99.1 ──── switch ─── wire0 192.168.99.2
//
// A [Pair] is the shortest form: two pods joined by one cable, for measurements.
//
// Everything is IPv4 and IPv6. Namespaces are anonymous, held only by descriptors of this process, so nothing is left
// of them when it ends, however it ends; processes started inside are killed with it. No mount is made outside of
// private mount namespaces, so that root of a user namespace is enough.
//
// Methods may be called concurrently; Close ends everything and waits for it.
package topology
