package kube

import (
	"fmt"

	networkingv1 "istio.io/api/networking/v1"
)

// Every host of a ServiceEntry has all its ports, and every endpoint has all its hosts; every endpoint of an EndpointSlice has all
// its ports: a small object can ask for hundreds of megabytes, which every agent would have to take before it hears of anything else.
const (
	// maxEntry bounds what becomes of one ServiceEntry or EndpointSlice for an agent, in octets as this file counts them. 4,096
	// endpoints, which is all that the API lets an entry have, of ten hosts with five ports each are below it, and 1,000 of a
	// slice with 400 ports.
	maxEntry = 4 << 20
	// selectedEndpoints are counted for a selector, which says nothing of how many it selects: 16 KiB are left for each then.
	selectedEndpoints = 256

	// What there is on the wire besides texts, rounded up.
	sizeService, sizeHost, sizePort, sizeAddress = 64, 16, 10, 24
)

// size returns about how many octets the services of the entry and their places in workloads take for an agent. The definition
// bounds none of the lists by much, and an object is smaller than 2 MiB, so that no product overflows.
func (o *serviceEntryObject) size(spec *networkingv1.ServiceEntry) int {
	service := sizeService + sizePort*len(o.ports) + sizeAddress*(len(o.vips)+len(o.cidrs))
	for _, list := range [][]string{spec.GetSubjectAltNames(), o.exportTo} {
		for _, s := range list {
			service += len(s) + sizeHost
		}
	}
	members := 0 // in a workload that belongs to all hosts
	for _, host := range o.hosts {
		members += len(o.namespace) + len(host) + sizeHost + sizePort*len(o.ports)
	}
	endpoints := max(1, len(o.endpoints))
	if o.selects {
		endpoints = max(endpoints, selectedEndpoints)
	}
	return len(o.hosts)*service + members*endpoints
}

// refuse takes out of the entry whatever would be published or keep something from others, and says so.
func (o *serviceEntryObject) refuse() string {
	fault := fmt.Sprintf("%d hosts with %d ports and %d endpoints are too much for one object: nothing of it is used",
		len(o.hosts), len(o.ports), len(o.endpoints))
	o.hosts, o.vips, o.cidrs, o.endpoints, o.names = nil, nil, nil, nil, nil
	return fault
}

// bound takes all endpoints out of a slice that is too large, and says so. Those of pods count for others' workloads.
func (o *sliceObject) bound() {
	if n := len(o.endpoints) + len(o.pods); n*len(o.ports)*sizePort > maxEntry {
		o.fault = fmt.Sprintf("%d endpoints with %d ports are too much for one object: nothing of it is used", n, len(o.ports))
		o.endpoints, o.pods, o.podUIDs, o.ports = nil, nil, nil, nil
	}
}
