package kubenode

import (
	"context"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/culvert-mesh/culvert/redirect/podset"
)

// gone reports whether a pod that was to be patched is not there any more, or another has its name.
func gone(err error) bool { return apierrors.IsNotFound(err) || apierrors.IsConflict(err) }

// LeaveAll takes all pods out of the mesh for good: they are opened, others are told as far as the agent still may, then the
// pods stop to be captured and drain. Where it may tell nobody, pods are served for a moment after they have left: the agents of other
// nodes leave at about the same time, and until they do their pods come through the tunnel. It returns when all have left
// or ctx ends, with those that have not, or not wholly, and why in Err. Call it beside Run.
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
	pods := a.cfg.Set.Pods()
	for i := range pods {
		wg.Go(func() { pods[i].Err = a.cfg.Set.RemoveLingering(ctx, pods[i].Pod.UID, linger, drain) })
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
	return slices.DeleteFunc(pods, func(st podset.Status) bool { return st.Err == nil })
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
