package dns

import (
	"context"
	"fmt"

	"github.com/culvert-mesh/culvert/workload"
)

// Lookup answers questions of one pod.
type Lookup struct {
	resolver *Resolver
	store    *workload.Store
	client   func(context.Context) (*workload.Workload, error)
	search   []string
}

// For returns the Lookup of one pod. client returns the pod's workload, waiting
// for it within ctx when the store does not have it yet; it is asked for every
// question, because the workload may be replaced. search is as in Client.
func (r *Resolver) For(store *workload.Store, client func(context.Context) (*workload.Workload, error), search []string) *Lookup {
	return &Lookup{resolver: r, store: store, client: client, search: search}
}

// Resolve answers one question; an error means that the pod itself is unknown, so
// that nothing may be answered or forwarded in its name.
func (l *Lookup) Resolve(ctx context.Context, name string, qtype uint16) (Answer, error) {
	w, err := l.client(ctx)
	if err != nil {
		return Answer{}, fmt.Errorf("resolve %s: unknown client: %w", name, err)
	}
	c := Client{Namespace: w.Namespace, Network: w.Network, Search: l.search}
	return l.resolver.Resolve(l.store.Snapshot(), c, name, qtype), nil
}
