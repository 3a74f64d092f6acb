// Package netpolpb has the wire types of network policies, generated from
// netpol.proto by `go generate`. Package wire converts them; nothing else should
// import them.
package netpolpb

//go:generate go run -C ../../../tools ./protogen -root ../workload netpol/netpolpb/netpol.proto
