package kubenode

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/culvert-mesh/culvert/cmd/internal/enrol"
	"github.com/culvert-mesh/culvert/redirect/handoff"
	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/podset"
)

// delWait bounds how long a DEL waits for the pod to let go: long enough for its peers to be told.
const delWait = time.Second

// Handoff returns what serves the hand-off socket: the Set's own operations and those of the CNI plugin.
func (a *Agent) Handoff() handoff.Handler { return handler{a.cfg.Set.Handoff(), a} }

type handler struct {
	handoff.Handler
	agent *Agent
}

var (
	_ handoff.CNIHandler      = handler{}
	_ handoff.CNIStateHandler = handler{}
)

// CNIAdd implements handoff.CNIHandler.
func (h handler) CNIAdd(ctx context.Context, c handoff.CNIPod, ns *netns.NS) (bool, error) {
	a := h.agent
	ctx, cancel := context.WithTimeoutCause(ctx, a.cfg.AddTimeout, errors.New("timeout"))
	defer cancel()
	defer context.AfterFunc(a.life, cancel)()
	enrolled, err := a.add(ctx, c, ns)
	switch {
	case err != nil:
		a.cfg.Logger.Warn("pod cannot start", "pod", c.String(), "uid", c.UID, "error", err)
		if c.UID != "" {
			a.events.warn(podRef{c.Namespace, c.Name, c.UID}, reasonFailed, err.Error())
		}
	case !enrolled:
		a.cfg.Logger.Debug("pod stays out of the mesh", "pod", c.String(), "uid", c.UID)
	}
	return enrolled, err
}

// add owns ns.
func (a *Agent) add(ctx context.Context, c handoff.CNIPod, ns *netns.NS) (bool, error) {
	given := false
	defer func() {
		if !given {
			_ = ns.Close()
		}
	}()
	key := c.Namespace + "/" + c.Name
	if err := a.wait(ctx, a.listed, "the node's pods are not known yet"); err != nil {
		return false, err
	}
	p, d, err := a.awaitPod(ctx, key, c.UID)
	if err != nil {
		return false, err
	}
	if !d.In || a.life.Err() != nil {
		return false, nil
	}
	if err := a.wait(ctx, a.cfg.Synced, "the state of the mesh is not known yet"); err != nil {
		return false, err
	}
	unlock := a.locks.lock(key)
	defer unlock()
	if p, d, err = a.awaitPod(ctx, key, p.uid()); err != nil { // it may be another by now
		return false, err
	}
	if !d.In || a.life.Err() != nil {
		return false, nil
	}
	t := a.track(p)
	a.mu.Lock()
	t.leaving, t.gone = false, false
	a.mu.Unlock()
	a.host(t, c.Addresses)
	options, _ := a.options(d.Capture) // stay tells the warnings
	t.guard(&options, c.Addresses)
	id := ns.ID()
	given = true
	defer a.queue.Add(key) // says how far it is
	if err := a.cfg.Set.Add(ctx, a.podOf(p, ns, &options)); err != nil {
		// The runtime takes this namespace away now and comes with another.
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		_ = a.cfg.Set.RemoveFrom(ended, p.uid(), id, 0)
		a.host(t, nil)
		return false, err
	}
	return true, nil
}

func (a *Agent) wait(ctx context.Context, c <-chan struct{}, what string) error {
	select {
	case <-c:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("agent is not ready: %s", what)
	}
}

// awaitPod waits until the pod and its namespace are known, and returns what is to be with it. A pod of the same name
// with another UID is an old one, or the runtime's word is old: both end by waiting. Runtimes say the UID; one that does
// not has the name to go by, and then a pod that is being deleted is not the one that starts.
func (a *Agent) awaitPod(ctx context.Context, key, uid string) (*pod, enrol.Decision, error) {
	for {
		next := a.next()
		p := a.pod(key)
		var why string
		switch {
		case p == nil:
			why = "the API server has not told of it on this node"
		case uid != "" && uid != p.uid() && uid != p.sandboxUID():
			why = fmt.Sprintf("the API server has it under uid %s", p.uid())
		case uid == "" && p.DeletionTimestamp != nil:
			why = "the API server has only one that is being deleted"
		default:
			if d, known := a.decide(p); known {
				return p, d, nil
			}
			why = "its namespace is not known"
		}
		select {
		case <-next:
		case <-ctx.Done():
			return nil, enrol.Decision{}, fmt.Errorf("find pod %s with uid %q: %s: %w", key, uid, why, context.Cause(ctx))
		}
	}
}

// CNIDel implements handoff.CNIStateHandler.
func (h handler) CNIDel(ctx context.Context, c handoff.CNIPod, ns *netns.NS) error {
	a := h.agent
	key := c.Namespace + "/" + c.Name
	defer a.queue.Add(key)
	if ns == nil {
		return nil // what is held is another one, or goes with the pod's own end
	}
	id := ns.ID()
	_ = ns.Close()
	ctx, cancel := context.WithTimeout(ctx, delWait)
	defer cancel()
	var errs []error
	for _, st := range a.cfg.Set.Pods() {
		if st.NetNS == id && st.Pod.Namespace == c.Namespace && st.Pod.Name == c.Name {
			if err := a.cfg.Set.RemoveFrom(ctx, st.Pod.UID, id, deadDrain); !errors.Is(err, podset.ErrBehind) { // that goes with the namespace
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// CNICheck implements handoff.CNIStateHandler.
func (h handler) CNICheck(ctx context.Context, c handoff.CNIPod, ns *netns.NS) (bool, error) {
	a := h.agent
	id := ns.ID()
	_ = ns.Close()
	ctx, cancel := context.WithTimeoutCause(ctx, delWait, errors.New("timeout"))
	defer cancel()
	if err := a.wait(ctx, a.listed, "the node's pods are not known yet"); err != nil {
		return false, err
	}
	p, d, err := a.awaitPod(ctx, c.Namespace+"/"+c.Name, c.UID)
	if err != nil {
		return false, err
	}
	if !d.In {
		return false, nil
	}
	st, there := a.cfg.Set.Pod(p.uid())
	switch {
	case !there:
		return false, errors.New("pod is to be enrolled and is not")
	case st.NetNS != id:
		return false, fmt.Errorf("pod is enrolled with network namespace %s", st.NetNS)
	case st.State != podset.Enrolled:
		return false, fmt.Errorf("pod is %s: %w", st.State, errors.Join(st.Err))
	}
	return true, nil
}

// CNIStatus implements handoff.CNIStateHandler. Pods that stay out can start as soon as the node's pods are known, so
// nothing else counts: the controller may be one of them.
func (h handler) CNIStatus(context.Context) error {
	select {
	case <-h.agent.listed:
		return nil
	default:
		return errors.New("agent is not ready: the node's pods are not known yet")
	}
}
