// Package netlab is a mesh without Kubernetes on one machine: nodes and pods as network namespaces of the real kernel
// (redirect/topology), one culvert-node process on each node, and the file that tells the agents who is there.
//
// `culvert demo`, the lab's own tests and the benchmarks stand on it. It starts what a user would start, with the flags
// that a user would give, and reads what a user would read: metrics, access log, configuration dump. A Lab belongs to
// one goroutine; what it returns may be used from others.
package netlab
