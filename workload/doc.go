// Package workload holds what the mesh knows about its members: workloads,
// services and the endpoints that join them.
//
// The types are Culvert's own trimmed form of the objects that Istio's
// workload discovery (WDS) carries. Sources (packages below source/) convert
// their input to them and write them into a Store; everything that decides
// about a connection reads one Snapshot of it.
//
// The package leaves choosing an endpoint to route, deciding about a
// connection to policy, and answering names to dns.
//
// Concurrency: Workload, Service and what they point to are immutable once
// they were given to a Store, so they may be shared freely. A Store has one
// writer at a time (calls are serialised inside) and any number of readers;
// taking a Snapshot is one atomic load and reading it takes no lock.
package workload
