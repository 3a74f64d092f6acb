package proxy

import (
	"context"
	"errors"
	"time"

	"github.com/culvert-mesh/culvert/hbone/pool"
	"github.com/culvert-mesh/culvert/workload"
)

// storePause is the least time between two looks at what a change of the store means for live connections: a large
// cluster changes many times a second, and hardly any change concerns this node.
const storePause = 100 * time.Millisecond

// watchPolicies ends the inbound flows that a changed policy does not allow any more.
func (p *Proxy) watchPolicies(ctx context.Context) {
	for {
		// The first time round counts too: flows may be older than the watch.
		now := p.cfg.Policies.Snapshot()
		for _, pod := range p.Pods() {
			pod.rejudge()
		}
		select {
		case <-now.Changed():
		case <-ctx.Done():
			return
		}
	}
}

// watchStore does the same when the pod's own workload changes, and retires tunnels to workloads that are gone or have
// another identity.
func (p *Proxy) watchStore(ctx context.Context) {
	known := make(map[*Pod]*workload.Workload)
	last := p.cfg.Store.Snapshot()
	p.storeChanged(last, known)
	for {
		select {
		case <-last.Changed():
		case <-ctx.Done():
			return
		}
		last = p.cfg.Store.Snapshot()
		p.storeChanged(last, known)
		pause := time.NewTimer(storePause)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return
		}
	}
}

// storeChanged compares the pods' workloads with those known before.
func (p *Proxy) storeChanged(snap *workload.Snapshot, known map[*Pod]*workload.Workload) {
	pods := p.Pods()
	live := make(map[*Pod]bool, len(pods))
	for _, pod := range pods {
		live[pod] = true
		if local := pod.localIn(snap); local != nil && known[pod] != local.workload {
			known[pod] = local.workload
			pod.rejudge()
		}
		pod.pool.Retain(func(key pool.Key) bool { return current(snap, key) })
	}
	for pod := range known {
		if !live[pod] {
			delete(known, pod)
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

// rejudge asks policy again about each inbound flow. Policies that are missing now end nothing.
func (p *Pod) rejudge() {
	local := p.localNow()
	if local == nil {
		return
	}
	policies := p.proxy.cfg.Policies.Snapshot()
	for _, f := range p.flows.all() {
		if f.Direction != Inbound || !f.opened.Load() {
			continue
		}
		if d := policies.Evaluate(local.workload, f.facts); d.EndsLive() {
			f.owner.cut(&policyChange{d.Policy})
		}
	}
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
