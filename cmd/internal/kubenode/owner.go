package kubenode

import (
	"context"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// The attempts to find out why the agent ends.
const (
	ownerAttempts = 3
	ownerPause    = time.Second
	ownerTime     = 3 * time.Second // for all of them; more when the end has more than four times that
)

// lookForOwner notes that the agent's own DaemonSet can be seen: only then does its absence mean anything. From then on it
// follows the DaemonSet until ctx ends: a watch goes on when the account is deleted that began it.
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
			a.owner.RunWithContext(ctx)
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

// ownerSeenGoing reports whether the DaemonSet was there, and it or the namespace was deleted after that, as far as the API
// server has told by itself.
func (a *Agent) ownerSeenGoing() bool {
	if obj, exists, err := a.spaces.GetStore().GetByKey(a.cfg.Namespace); err == nil && exists {
		if n, ok := obj.(*namespace); ok && n.DeletionTimestamp != nil {
			return true
		}
	}
	if !a.owner.HasSynced() {
		return false
	}
	obj, exists, err := a.owner.GetStore().GetByKey(a.cfg.Namespace + "/" + a.cfg.DaemonSet)
	if err != nil || !exists {
		return err == nil
	}
	d, ok := obj.(*daemonSet)
	return ok && d.DeletionTimestamp != nil
}

// Uninstalled reports whether the agent ends because the mesh does: its DaemonSet, or their namespace, is being deleted or has
// gone, or the agent may not ask any more because its permissions went first. In doubt it is an upgrade, and pods stay captured.
//
// That the API server does not know the agent any more (401) says nothing of the DaemonSet. The account may have been deleted
// with it, but a token also ends with a pod that is deleted by force or outlives its grace, and a server in trouble refuses
// good ones. What was seen of the DaemonSet until then decides.
//
// That the agent may not ask (403) is believed when it is so for a while, or when the DaemonSet was seen to go: an API server that
// has just begun, or cannot reach its authorizer, permits nobody anything.
func (a *Agent) Uninstalled(ctx context.Context) bool {
	a.mu.Lock()
	owned := a.owned
	a.mu.Unlock()
	if a.cfg.Namespace == "" || a.cfg.DaemonSet == "" {
		return false
	}
	// Connections end after this, and within the same time: a server that does not answer must leave them most of it.
	budget := ownerTime
	if end, ok := ctx.Deadline(); ok {
		budget = max(budget, time.Until(end)/4)
	}
	ctx, cancel := context.WithTimeout(ctx, budget)
	defer cancel()
	for attempt := 1; ; attempt++ {
		deleting, err := a.client.daemonSet(ctx, a.cfg.Namespace, a.cfg.DaemonSet)
		switch {
		case err == nil:
			return deleting
		case apierrors.IsNotFound(err), apierrors.IsForbidden(err) && (attempt == ownerAttempts || a.ownerSeenGoing()),
			apierrors.IsUnauthorized(err) && owned && a.ownerSeenGoing():
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
