package kubenode

import (
	"context"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/culvert-mesh/culvert/redirect/podset"
)

// The attempts to find out why the agent ends.
const (
	ownerAttempts = 3
	ownerPause    = time.Second
)

// gone reports whether a pod that was to be patched is not there any more, or another has its name.
func gone(err error) bool { return apierrors.IsNotFound(err) || apierrors.IsConflict(err) }

// lookForOwner notes that the agent's own DaemonSet can be seen: only then does its absence mean anything.
func (a *Agent) lookForOwner(ctx context.Context) {
	if a.cfg.Namespace == "" || a.cfg.DaemonSet == "" {
		return
	}
	pause := time.NewTicker(10 * time.Second)
	defer pause.Stop()
	for {
		_, err := a.client.daemonSet(ctx, a.cfg.Namespace, a.cfg.DaemonSet)
		if err == nil {
			a.mu.Lock()
			a.owned = true
			a.mu.Unlock()
			return
		}
		if ctx.Err() == nil {
			a.cfg.Logger.Warn("looking at the agent's own DaemonSet failed: until it works, the end of the agent counts as an upgrade", "error", err)
		}
		select {
		case <-pause.C:
		case <-ctx.Done():
			return
		}
	}
}

// Uninstalled reports whether the agent ends because the mesh does: its DaemonSet, or their namespace, is being deleted or has
// gone, or the agent may not ask any more because its permissions went first. In doubt it is an upgrade, and pods stay captured.
func (a *Agent) Uninstalled(ctx context.Context) bool {
	a.mu.Lock()
	owned := a.owned
	a.mu.Unlock()
	if a.cfg.Namespace == "" || a.cfg.DaemonSet == "" {
		return false
	}
	for attempt := 1; ; attempt++ {
		deleting, err := a.client.daemonSet(ctx, a.cfg.Namespace, a.cfg.DaemonSet)
		switch {
		case err == nil:
			return deleting
		case apierrors.IsNotFound(err), apierrors.IsUnauthorized(err), apierrors.IsForbidden(err):
			a.cfg.Logger.Info("the agent's own DaemonSet is not to be seen", "seen_before", owned, "error", err)
			return owned
		}
		a.cfg.Logger.Warn("looking at the agent's own DaemonSet failed", "attempt", attempt, "error", err)
		if attempt == ownerAttempts {
			return false
		}
		timer := time.NewTimer(ownerPause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return false
		}
	}
}

// LeaveAll takes all pods out of the mesh for good: they are opened, others are told as far as the agent still may, then the
// pods stop to be captured and drain. Where it may tell nobody, pods are served for a moment after they have left: the agents of other
// nodes leave at about the same time, and until they do their pods come through the tunnel. It returns when all have left
// or ctx ends, with those that have not. Call it beside Run.
func (a *Agent) LeaveAll(ctx context.Context) (left []podset.Status) {
	a.end()
	var opened sync.WaitGroup
	for _, st := range a.cfg.Set.Pods() {
		opened.Go(func() { a.open(ctx, st.Pod.UID) })
	}
	opened.Wait()
	settle := min(a.cfg.Settle, time.Second)
	linger := settle
	if a.withdraw(ctx) {
		linger = 0
		timer := time.NewTimer(settle)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
	var wg sync.WaitGroup
	drain := a.cfg.Drain
	if deadline, ok := ctx.Deadline(); ok {
		drain = min(drain, time.Until(deadline)*3/4) // what is to be deleted after it takes its time
	}
	for _, st := range a.cfg.Set.Pods() {
		wg.Go(func() { _ = a.cfg.Set.RemoveLingering(ctx, st.Pod.UID, linger, drain) })
	}
	wg.Wait()
	a.mu.Lock()
	tracked := a.tracked
	a.tracked = map[string]*track{}
	a.mu.Unlock()
	for _, t := range tracked {
		unlock := a.locks.lock(t.key)
		a.host(t, nil)
		unlock()
	}
	return a.cfg.Set.Pods()
}

// withdraw removes the annotations of the node's pods. The first refusal ends it: the permission has gone.
func (a *Agent) withdraw(ctx context.Context) (told bool) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		slots = make(chan struct{}, a.cfg.Workers)
	)
	for _, obj := range a.pods.GetStore().List() {
		p, ok := obj.(*pod)
		if !ok {
			continue
		}
		unlock := a.locks.lock(p.Namespace + "/" + p.Name) // whoever works on it ends first
		t := a.lookup(p.uid())
		unlock()
		if t == nil && p.Annotations[annotation] == "" { // what was written last may not have come back yet
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			err := a.client.annotate(ctx, p, absent)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				told = true
				return
			}
			if apierrors.IsUnauthorized(err) || apierrors.IsForbidden(err) {
				cancel()
			}
			a.cfg.Logger.Info("annotation stays", "pod", p.Namespace+"/"+p.Name, "error", err)
		})
	}
	wg.Wait()
	return told
}
