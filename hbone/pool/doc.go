// Package pool keeps the tunnels of one pod and shares them between connections that may share one: same source
// identity, same destination, same identities expected there.
//
// A Pool belongs to one pod in one network namespace, so that tunnels are never shared between pods whatever their keys
// say: the peer sees the pod's own address, and the tunnel lives as long as the pod. How a tunnel is made is the caller's
// business (Dial); which peer a connection needs is too.
//
// All methods may be called from anywhere, including loops; none but Get and Close blocks, and nothing is called out
// while the lock is held.
package pool
