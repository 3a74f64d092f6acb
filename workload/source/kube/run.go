package kube

import (
	"context"
	"sync"
	"time"
)

// waitingInterval is how often Run says what it still waits for.
const waitingInterval = 15 * time.Second

// runner is one run of a Source. Everything in it belongs to the goroutine of
// Run.
type runner struct {
	source   *Source
	messages chan message
	running  sync.WaitGroup
	core     []*watcher
	custom   map[kind]*watcher
	first    time.Time // of the changes that wait
	waiting  bool      // there are any
	ready    bool      // everything has been listed once
}

// Run watches the cluster until ctx ends, and returns then. It is called once.
// An API server that is away is no error: the last state stays, and watching
// goes on when it is back.
func (s *Source) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	r := &runner{source: s, messages: make(chan message, 256), custom: make(map[kind]*watcher)}
	defer r.running.Wait()
	defer cancel()
	for _, sp := range s.coreSpecs() {
		r.core = append(r.core, r.start(ctx, sp))
	}
	flush := time.NewTimer(time.Hour)
	flush.Stop()
	defer flush.Stop()
	remind := time.NewTicker(waitingInterval)
	defer remind.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case m := <-r.messages:
			r.take(ctx, m)
			// A kind that is defined later holds nothing up.
			if r.waiting && (r.ready || r.synced()) {
				flush.Reset(r.delay(time.Now()))
			}
		case <-flush.C:
			r.flush()
		case <-remind.C:
			if !r.remind() {
				remind.Stop()
			}
		}
	}
}

// take applies a message to the state.
func (r *runner) take(ctx context.Context, m message) {
	if m.from.kind == kindDefinition {
		r.define(ctx, m)
	} else if !r.current(m.from) {
		return // its definition is gone
	} else {
		st := r.source.state
		switch {
		case m.replace:
			st.replace(m.from.kind, m.objects)
		default:
			for _, o := range m.objects {
				c := change{ref: ref{m.from.kind, o.head().key}, object: o}
				if m.gone {
					c.object = nil
				}
				st.apply(c)
			}
		}
	}
	m.from.synced = m.from.synced || m.replace
	if !r.waiting {
		r.first, r.waiting = time.Now(), true
	}
}

// current reports whether the watcher is one that runs.
func (r *runner) current(w *watcher) bool {
	if r.custom[w.kind] == w {
		return true
	}
	for _, c := range r.core {
		if c == w {
			return true
		}
	}
	return false
}

// define starts and stops watches as definitions come and go.
func (r *runner) define(ctx context.Context, m message) {
	there := make(map[string]bool, len(m.objects))
	for _, o := range m.objects {
		there[o.head().name] = true
	}
	for _, c := range customResources() {
		if c.kind == kindClusterNetworkPolicy && r.source.cfg.NetworkPolicies == nil {
			continue
		}
		w, mentioned := r.custom[c.kind], there[c.definition()]
		switch {
		case mentioned && !m.gone && w == nil:
			r.source.cfg.Logger.Info("watching custom resource", "resource", c.definition())
			r.custom[c.kind] = r.start(ctx, r.source.customSpec(c))
		case w != nil && (mentioned && m.gone || m.replace && !mentioned):
			// Its objects are gone with it.
			r.source.cfg.Logger.Info("custom resource is not defined any more", "resource", c.definition())
			w.cancel()
			delete(r.custom, c.kind)
			r.source.state.replace(c.kind, nil)
		}
	}
}

// synced reports whether every watch that runs has listed once.
func (r *runner) synced() bool {
	for _, w := range r.core {
		if !w.synced {
			return false
		}
	}
	for _, w := range r.custom {
		if !w.synced {
			return false
		}
	}
	return true
}

// delay is how long to collect further changes.
func (r *runner) delay(now time.Time) time.Duration {
	cfg := &r.source.cfg
	return max(0, min(cfg.Quiet, cfg.Linger-now.Sub(r.first)))
}

// flush applies what has changed. Policies come before the workloads that name
// them and go after them; what is known of a pod for network policies is known
// before its workload is.
func (r *runner) flush() {
	s := r.source
	r.waiting, r.ready = false, true
	b := s.state.flush()
	if s.cfg.NetworkPolicies != nil {
		s.cfg.NetworkPolicies.Apply(b.networks, b.networkRemovals)
		s.cfg.NetworkPolicies.SetReady(true)
	}
	if len(b.policies) > 0 {
		s.cfg.Policies.Apply(b.policies, nil)
	}
	s.cfg.Store.Apply(b.events)
	if len(b.narrowed)+len(b.removals) > 0 {
		s.cfg.Policies.Apply(b.narrowed, b.removals)
	}
	s.publishReports(b.reports)
	select {
	case <-s.synced:
	default:
		close(s.synced)
		snap := s.cfg.Store.Snapshot()
		s.cfg.Logger.Info("synced with the cluster", "workloads", snap.WorkloadCount(), "services", snap.ServiceCount())
	}
}

// remind says what is waited for. It reports false when nothing is.
func (r *runner) remind() bool {
	select {
	case <-r.source.synced:
		return false
	default:
	}
	var kinds []string
	for _, w := range r.core {
		if !w.synced && w.kind != kindDefinition {
			kinds = append(kinds, w.kind.String())
		} else if !w.synced {
			kinds = append(kinds, "CustomResourceDefinition")
		}
	}
	for _, w := range r.custom {
		if !w.synced {
			kinds = append(kinds, w.kind.String())
		}
	}
	r.source.cfg.Logger.Warn("waiting for the first list", "kinds", kinds)
	return true
}
