package proxy

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/hbone/pool"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
)

// storePause is the least time between two looks at what changes of the store, or of what a judge goes by, mean for live
// connections: a large cluster changes many times a second, and hardly any change concerns this node.
const storePause = 100 * time.Millisecond

// A judge says which established flows may not go on, by something that changes while they live: policy, for instance.
// That new connections are judged is not its business. A judge is a pointer; all of it may be called concurrently.
//
// A flow is looked at when what the judge goes by changes for its pod, once it is open. A flow that a judge has allowed
// before it was open, and that did not ask again since, has to be looked at when it opens: see Flow.reconsider.
type judge interface {
	// concerns reports whether the judge has anything to say about flows of a direction.
	concerns(d Direction) bool
	// changed returns a channel that is closed at the next change of what the judge goes by. It is taken before looking, so
	// that nothing is missed. Changes of the workload store need not be told: they are always followed.
	changed() <-chan struct{}
	// sit begins to judge the flows of a pod by the newest state. While the basis, a comparable value, is the same as before,
	// so are the verdicts, and were at every moment between, and no flow is looked at. look returns what the flow has to end
	// with, nil when it may go on.
	sit(p *Pod, local *localState) (basis any, look func(*Flow) error)
}

// authorization is the judge of inbound flows by authorization policies. Policies that are missing now end nothing.
type authorization struct{ policies *policy.Set }

func (a *authorization) concerns(d Direction) bool { return d == Inbound }

func (a *authorization) changed() <-chan struct{} { return a.policies.Changed() }

func (a *authorization) sit(_ *Pod, local *localState) (basis any, look func(*Flow) error) {
	snap := a.policies.Snapshot()
	return authorizationBasis{local.workload, snap.Basis(local.workload)}, func(f *Flow) error {
		if d := snap.Evaluate(local.workload, f.facts); d.EndsLive() {
			return &policyChange{d.Policy}
		}
		return nil
	}
}

// authorizationBasis has the workload in it because policies may have been others for moments in which nobody looked: a
// workload that names none and then the same ones again has been two others meanwhile.
type authorizationBasis struct {
	workload *workload.Workload
	policies policy.Basis
}

// review is what a pod's flows have been judged by.
type review struct {
	mu    sync.Mutex // one review at a time, so that an older state never comes after a newer one
	basis map[judge]any
}

// rejudge looks again at the open flows of the pod, if what the judge goes by has changed for them. It takes about as
// long as it takes to judge as many new connections, in the caller's goroutine; the flows' loops are asked for nothing
// but to cut those that end.
func (p *Pod) rejudge(j judge) {
	p.review.mu.Lock()
	defer p.review.mu.Unlock()
	local := p.localNow()
	if local == nil {
		if local = p.local.Load(); local == nil { // the last one counts while there is none
			return
		}
	}
	basis, look := j.sit(p, local)
	if last, known := p.review.basis[j]; known && last == basis {
		return
	}
	for _, f := range p.flows.all() {
		if !j.concerns(f.Direction) || !f.opened.Load() {
			continue
		}
		if err := look(f); err != nil {
			f.owner.cut(err)
		}
	}
	if p.review.basis == nil {
		p.review.basis = make(map[judge]any)
	}
	p.review.basis[j] = basis
}

// reconsider has all judges of its direction look at a flow that has just been opened, and cuts it if one of them says so.
func (f *Flow) reconsider() {
	local := f.pod.localNow()
	if local == nil {
		return
	}
	for _, j := range f.pod.proxy.judges {
		if !j.concerns(f.Direction) {
			continue
		}
		_, look := j.sit(f.pod, local)
		if err := look(f); err != nil {
			f.owner.cut(err)
			return
		}
	}
}

// watch has a judge look at the flows of all pods whenever what it goes by has changed.
func (p *Proxy) watch(ctx context.Context, j judge) {
	for {
		// The first time round counts too: flows may be older than the watch.
		changed := j.changed()
		for _, pod := range p.Pods() {
			pod.rejudge(j)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
		if !pause(ctx) {
			return
		}
	}
}

// pause waits for a storePause and reports false when ctx ends.
func pause(ctx context.Context) bool {
	t := time.NewTimer(storePause)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// watchStore has all judges look at the flows of pods whose workloads have changed, and retires tunnels to workloads that
// are gone or have another identity.
func (p *Proxy) watchStore(ctx context.Context) {
	for {
		snap := p.cfg.Store.Snapshot()
		for _, pod := range p.Pods() {
			for _, j := range p.judges {
				pod.rejudge(j)
			}
			pod.pool.Retain(func(key pool.Key) bool { return current(snap, key) })
		}
		select {
		case <-snap.Changed():
		case <-ctx.Done():
			return
		}
		if !pause(ctx) {
			return
		}
	}
}

// current reports whether a tunnel still leads to what it was made for.
func current(snap *workload.Snapshot, key pool.Key) bool {
	w := snap.Workload(key.UID())
	if w == nil {
		return false
	}
	id := w.Identity() // goes first among the identities expected there
	return id.IsZero() || id == key.Expected()
}

// policyChange is ErrPolicyChange with the policy that decided.
type policyChange struct{ policy string }

func (e *policyChange) Error() string { return ErrPolicyChange.Error() }

func (e *policyChange) Unwrap() error { return ErrPolicyChange }

// recheckTunnels ends the tunnels, in both roles, whose peers have been revoked, and what goes without a tunnel likewise.
func (p *Proxy) recheckTunnels() {
	for _, pod := range p.Pods() {
		for _, pr := range pod.peers() {
			pr.recheck()
		}
		for _, c := range pod.pool.All() {
			pod.recheckConn(c)
		}
		pod.recheckShort()
	}
}

// recheckConn ends a tunnel of the pool if its peer has been revoked.
func (p *Pod) recheckConn(c *pool.Conn) {
	t, ok := c.User.(*trust)
	if !ok {
		return
	}
	if err := t.check(p.proxy.cfg.Revocation, c.Tunnel()); err != nil {
		c.Tunnel().Post(func() { c.Tunnel().Close(err) })
	}
}

// policyOf returns the policy that ended a flow, if one did.
func policyOf(err error) string {
	if e, ok := errors.AsType[*policyChange](err); ok {
		return e.policy
	}
	if e, ok := errors.AsType[*DeniedError](err); ok {
		return e.Policy
	}
	return ""
}
