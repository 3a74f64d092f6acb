package main

import (
	"cmp"
	"errors"
	"sync"

	"github.com/culvert-mesh/culvert/hbone/proxy"
	"github.com/culvert-mesh/culvert/workload/route"
	"github.com/culvert-mesh/culvert/workload/telemetry"
)

// passage is what became of a connection that an application made to somebody of whom the mesh has no workload.
type passage string

const (
	// passed: to a destination that the registry does not have.
	passed passage = "unknown"
	// registered: to the original destination, as a ServiceEntry says.
	registered passage = "registered"
	// refused: REGISTRY_ONLY did not let it out.
	refused passage = "refused"
	// revoked: REGISTRY_ONLY ended it later.
	revoked passage = "ended"
)

// maxPassingSeries bounds the series of the metric: namespaces come and go.
const maxPassingSeries = 1000

// passing counts them by the namespace of the client. It may be used concurrently.
type passing struct {
	mu    sync.Mutex
	count map[passingKey]uint64
}

type passingKey struct {
	namespace string
	passage   passage
}

func newPassing() *passing { return &passing{count: make(map[passingKey]uint64)} }

// opened takes a flow that proxy.Observer is told of.
func (p *passing) opened(f *proxy.Flow) {
	if f.Direction != proxy.Outbound || f.Destination.Workload != nil {
		return
	}
	if f.Service != nil {
		p.add(f, registered)
	} else {
		p.add(f, passed)
	}
}

// closed takes a flow that has ended or was refused.
func (p *passing) closed(f *proxy.Flow) {
	switch {
	case f.Direction != proxy.Outbound || f.Err == nil:
	case errors.Is(f.Err, route.ErrNotRegistered):
		p.add(f, refused)
	case errors.Is(f.Err, proxy.ErrOutboundPolicy):
		p.add(f, revoked)
	}
}

func (p *passing) add(f *proxy.Flow, what passage) {
	k := passingKey{"", what}
	if w := f.Source.Workload; w != nil {
		k.namespace = w.Namespace
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, there := p.count[k]; !there && len(p.count) >= maxPassingSeries {
		k.namespace = "overflow"
	}
	p.count[k]++
}

// samples emits the counters.
func (p *passing) samples(emit func(telemetry.Sample)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for k, n := range p.count {
		emit(telemetry.Sample{
			Name: "culvert_outbound_passthrough_total", Counter: true,
			Help: "Connections to destinations that are no workload of the mesh: unknown and registered ones, and those that the outbound traffic policy has refused or ended.",
			Labels: []telemetry.Label{
				{Name: "source_workload_namespace", Value: cmp.Or(k.namespace, "unknown")}, {Name: "result", Value: string(k.passage)},
			},
			Value: float64(n),
		})
	}
}
