package kubenode

import (
	"context"
	"time"

	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/procns"
)

// sweepAttempts is how often a pod is looked into where the rules of an earlier agent cannot be removed.
const sweepAttempts = 6

// sweep removes what an earlier agent has left in pods that are out and whose annotation says nothing of it: that agent
// ended between capturing a pod and saying so, and the label went before this one came. Nobody else would look there, and
// the pod's traffic would be refused for ever. Pods where the earlier agent still serves connections are looked at again.
func (a *Agent) sweep(ctx context.Context) {
	pause := time.NewTicker(a.cfg.Look)
	defer pause.Stop()
	wanted := map[string]procns.Wanted{}
	keys := map[string]string{} // by UID
	for _, obj := range a.pods.GetStore().List() {
		if p, ok := obj.(*pod); ok && a.unmarked(p) {
			keys[p.uid()], wanted[p.uid()] = p.Namespace+"/"+p.Name, procns.Wanted{Addresses: p.addrs()}
		}
	}
	for look := 1; len(wanted) > 0; look++ {
		found, problems := a.cfg.Finder.Find(ctx, wanted) // one search for all of them
		for _, p := range problems {
			if p.UID == "" {
				a.cfg.Logger.Warn("pods are not searched for rules of an earlier agent", "error", p)
			} else { // a pod that has no namespace of its own, or none any more
				a.cfg.Logger.Debug("pod is not searched for rules of an earlier agent", "error", p)
			}
		}
		for uid := range wanted {
			ns := found[uid]
			if ns == nil {
				delete(wanted, uid)
				continue
			}
			busy, err := a.sweepPod(ctx, keys[uid], uid, ns)
			_ = ns.Close()
			if err != nil {
				a.cfg.Logger.Warn("removing rules of an earlier agent failed", "pod", keys[uid], "attempt", look, "attempts", sweepAttempts, "error", err)
			}
			if !busy && (err == nil || look >= sweepAttempts) {
				delete(wanted, uid)
			}
		}
		select {
		case <-pause.C:
		case <-ctx.Done():
			return
		}
	}
}

// sweepPod reports whether an earlier agent is busy in the pod.
func (a *Agent) sweepPod(ctx context.Context, key, uid string, ns *netns.NS) (busy bool, err error) {
	defer a.locks.lock(key)()
	p := a.pod(key)
	if ctx.Err() != nil || p == nil || p.uid() != uid || !a.unmarked(p) {
		return false, nil // it has become the business of reconcile
	}
	return a.cfg.Clean(ns)
}

// unmarked reports whether a pod is out, and neither its annotation nor the Set is a reason to look into it.
func (a *Agent) unmarked(p *pod) bool {
	d, known := a.decide(p)
	_, there := a.cfg.Set.Pod(p.uid())
	return known && !d.In && !there && a.lookup(p.uid()) == nil && p.Annotations[annotation] == absent &&
		!p.Spec.HostNetwork && !p.terminal() && len(p.addrs()) > 0
}
