package kubenode

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/cmd/internal/enrol"
	"github.com/culvert-mesh/culvert/redirect"
	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/podset"
)

// restartGrace is how long a pod that an earlier agent has enabled stays so while this one waits for its certificate:
// for that moment others would go over to plaintext. So long this agent is not ready, and an earlier one that is there serves on.
const restartGrace = 15 * time.Second

// deadDrain is the time for the connections of a pod whose processes have ended: for telling their peers.
const deadDrain = 3 * time.Second

// drainLook is how often a draining pod is looked at.
const drainLook = 10 * time.Second

// supersededLook is how often it is seen whether the other agent of the node still has the word, see Config.Superseded.
const supersededLook = time.Second

// reconcile makes one pod what it should be, as far as that goes now. The caller has the lock of its key. again, when
// not zero, is when to look again without an event.
func (a *Agent) reconcile(ctx context.Context, key string) (again time.Duration, err error) {
	if a.life.Err() != nil {
		return 0, nil
	}
	p := a.pod(key)
	a.discardOthers(key, p)
	if p == nil {
		return 0, nil
	}
	d, known := a.decide(p)
	switch {
	case !known:
		return 0, nil // the namespace's event queues the pod
	case d.In:
		return a.stay(ctx, p, d)
	}
	return a.leave(ctx, p, d.Why)
}

// discardOthers lets go of pods that had this name before.
func (a *Agent) discardOthers(key string, p *pod) {
	a.mu.Lock()
	var old []string
	for uid, t := range a.tracked {
		if t.key == key && (p == nil || p.uid() != uid) {
			old = append(old, uid)
		}
	}
	a.mu.Unlock()
	for _, uid := range old {
		a.discard(uid)
	}
}

// discard forgets a pod and makes the Set let go of it, without waiting.
func (a *Agent) discard(uid string) {
	a.mu.Lock()
	t := a.tracked[uid]
	delete(a.tracked, uid)
	a.mu.Unlock()
	if t != nil {
		a.host(t, nil)
	}
	a.drop(uid, deadDrain)
}

// drop makes the Set let go of a pod, without waiting. Its connections have that much time.
func (a *Agent) drop(uid string, drain time.Duration) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = a.cfg.Set.RemoveWithin(ctx, uid, drain) // it is on its way in any case
}

// lookup returns the track of a pod, or nil.
func (a *Agent) lookup(uid string) *track {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.tracked[uid]
}

func (a *Agent) track(p *pod) *track {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := a.tracked[p.uid()]
	if t == nil {
		t = &track{key: p.Namespace + "/" + p.Name, ref: podRef{p.Namespace, p.Name, p.uid()}, since: time.Now()}
		a.tracked[p.uid()] = t
	}
	return t
}

// forget ends the tracking of a pod that the Set has not.
func (a *Agent) forget(uid string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.tracked, uid)
}

// stay enrols a pod, or keeps it so, and says how far it is.
func (a *Agent) stay(ctx context.Context, p *pod, d enrol.Decision) (time.Duration, error) {
	t := a.track(p)
	a.mu.Lock()
	t.leaving, t.gone, t.resuming = false, false, false
	a.mu.Unlock()
	options, warnings := a.options(d.Capture)
	a.tell(t, append(d.Warnings, warnings...))

	addrs := p.addrs()
	if _, there := a.cfg.Set.Pod(p.uid()); !there && len(addrs) == 0 {
		// It has not started: the CNI plugin brings it, or its address does. After the node was started again it may be
		// called enabled still.
		if said := t.annotation(p); said == enabled {
			return a.say(ctx, p, t, pending)
		}
		return 0, nil
	}
	if !a.synced() && a.cfg.Superseded() {
		// The earlier agent serves it. This one would take half of its connections and could do nothing with them.
		t.resuming, t.since = true, time.Now()
		return supersededLook, nil
	}
	if err := a.enrol(ctx, p, t, addrs, &options); err != nil {
		a.events.warn(t.ref, reasonFailed, err.Error())
		_, sayErr := a.say(ctx, p, t, pending)
		return 0, errors.Join(err, sayErr)
	}
	again, err := a.report(ctx, p, t)
	if t.hostErr != nil {
		a.events.warn(t.ref, reasonFailed, t.hostErr.Error())
		err = errors.Join(err, t.hostErr)
	}
	return again, err
}

// synced reports whether the state of the mesh is known.
func (a *Agent) synced() bool {
	select {
	case <-a.cfg.Synced:
		return true
	default:
		return false
	}
}

// enrol sees to it that the Set has the pod, in the right namespace and with the right options. A failure of the Set
// itself is none here: it goes on trying and says so.
func (a *Agent) enrol(ctx context.Context, p *pod, t *track, addrs []netip.Addr, options *redirect.Options) error {
	wait, cancel := context.WithTimeout(ctx, enrolWait)
	defer cancel()
	if len(addrs) == 0 {
		addrs = t.addrs // of the CNI plugin
	}
	st, there := a.cfg.Set.Pod(p.uid())
	verified := there && (len(addrs) == 0 || slices.ContainsFunc(addrs, func(x netip.Addr) bool { return slices.Contains(t.addrs, x) }))
	if !verified {
		ns, err := a.seeker.find(ctx, p.sandboxUID(), addrs)
		if err != nil {
			return err
		}
		if there && ns.ID() == st.NetNS {
			_ = ns.Close()
		} else {
			a.host(t, addrs)
			t.guard(options, addrs)
			_ = a.cfg.Set.Add(wait, a.podOf(p, ns, options))
			return nil
		}
	}
	// The host guards an address before the pod heeds marks there, and until it does not any more.
	both := slices.SortedFunc(slices.Values(append(slices.Clone(t.addrs), addrs...)), netip.Addr.Compare)
	a.host(t, slices.Compact(both))
	t.guard(options, addrs)
	if st.Pod.Options == nil || !reflect.DeepEqual(*st.Pod.Options, *options) {
		if a.cfg.Set.Change(wait, p.uid(), options) != nil {
			return nil
		}
	} else if st.State != podset.Enrolled {
		return nil
	}
	if t.hostErr == nil {
		a.host(t, addrs)
	}
	return nil
}

// guard lets the pod heed the mark of probes at those of these addresses that the host's rules have.
func (t *track) guard(o *redirect.Options, addrs []netip.Addr) {
	if !o.ProbeMark {
		return
	}
	o.ProbeAddresses = nil
	for _, addr := range addrs {
		if slices.Contains(t.guarded, addr) && !addr.IsUnspecified() && !addr.IsLoopback() && !addr.IsMulticast() {
			o.ProbeAddresses = append(o.ProbeAddresses, addr.Unmap())
		}
	}
}

func (a *Agent) podOf(p *pod, ns *netns.NS, options *redirect.Options) podset.Pod {
	return podset.Pod{
		UID: p.uid(), Name: p.Name, Namespace: p.Namespace, ServiceAccount: p.serviceAccount(), Options: options, NS: ns,
	}
}

// report says on the pod how far it is.
func (a *Agent) report(ctx context.Context, p *pod, t *track) (time.Duration, error) {
	st, there := a.cfg.Set.Pod(p.uid())
	early := t.annotation(p) == enabled && time.Since(t.since) < restartGrace
	switch {
	case !there, st.State == podset.Failed:
		return a.say(ctx, p, t, pending) // its next event queues the pod
	case st.State != podset.Enrolled && early:
		t.resuming = true
		return time.Second, nil
	case st.State != podset.Enrolled:
		_, err := a.say(ctx, p, t, pending)
		return time.Second, err
	}
	if !t.certified {
		wait, cancel := context.WithTimeoutCause(ctx, certificateWait, errStillWaiting)
		certErr := a.cfg.Certified(wait, st.Pod)
		cancel()
		if certErr != nil && early {
			t.resuming = true
			return time.Second, nil
		}
		if certErr != nil {
			certErr = fmt.Errorf("pod has no certificate yet: %w", certErr)
			a.events.warn(t.ref, reasonNoCert, certErr.Error())
			if _, err := a.say(ctx, p, t, pending); err != nil {
				return 0, err
			}
			return 0, certErr
		}
		t.certified = true
	}
	return a.say(ctx, p, t, enabled)
}

// leave takes a pod out: it is opened and others are told first, then it stops to be captured, what is there drains, and at
// last the annotation goes.
func (a *Agent) leave(ctx context.Context, p *pod, why string) (time.Duration, error) {
	uid := p.uid()
	t := a.lookup(uid)
	_, there := a.cfg.Set.Pod(uid)
	if t == nil && !there && t.annotation(p) == absent {
		return 0, nil
	}
	t = a.track(p)
	if p.terminal() || p.Spec.HostNetwork { // nobody is left whom draining would serve, or was ever captured
		if _, err := a.say(ctx, p, t, absent); err != nil {
			return 0, err
		}
		a.discard(uid)
		return 0, nil
	}
	if !t.leaving {
		if err := a.beginLeaving(ctx, p, t, there, why); err != nil {
			return 0, err
		}
	}
	if wait := time.Until(t.leaveAt); wait > 0 {
		return wait, nil
	}
	if there {
		a.drop(uid, a.cfg.Drain)
		return time.Second, nil
	}
	draining, err := a.left(ctx, p, t)
	if err != nil {
		return 0, err
	}
	a.host(t, nil)
	if again, err := a.say(ctx, p, t, absent); again > 0 || err != nil {
		return again, err
	}
	if draining {
		return drainLook, nil // its event queues the pod earlier
	}
	a.forget(uid)
	return 0, nil
}

func (a *Agent) beginLeaving(ctx context.Context, p *pod, t *track, there bool, why string) error {
	said := t.annotation(p)
	a.open(ctx, p.uid())
	if _, err := a.say(ctx, p, t, pending); err != nil {
		return err
	}
	a.cfg.Logger.Info("pod leaves the mesh", "pod", t.key, "uid", t.ref.uid, "why", why)
	a.mu.Lock()
	defer a.mu.Unlock()
	t.leaving, t.gone, t.stuck, t.certified, t.leaveAt = true, false, false, false, time.Time{}
	if there && said == enabled {
		t.leaveAt = time.Now().Add(a.cfg.Settle)
	}
	return nil
}

// open lets what comes to a leaving pod pass to the application, before others are told to send no HBONE any more: what they
// send in place of it would be refused where policies ask for certificates. Tunnels are taken as before.
func (a *Agent) open(ctx context.Context, uid string) {
	st, there := a.cfg.Set.Pod(uid)
	if !there || st.Pod.Options == nil || st.Pod.Options.Ingress {
		return
	}
	options := *st.Pod.Options
	options.Ingress = true
	wait, cancel := context.WithTimeout(ctx, enrolWait)
	defer cancel()
	if err := a.cfg.Set.Change(wait, uid, &options); err != nil {
		a.cfg.Logger.Warn("a leaving pod still refuses what comes without a certificate", "pod", st.Pod, "error", err)
	}
}

// left sees to it that nothing more of the pod is captured, and reports whether connections from before drain still.
func (a *Agent) left(ctx context.Context, p *pod, t *track) (draining bool, err error) {
	a.mu.Lock()
	gone, stuck := t.gone, t.stuck
	a.mu.Unlock()
	switch {
	case stuck:
	case gone:
		return false, nil
	case slices.ContainsFunc(a.cfg.Set.Pods(), func(s podset.Status) bool { return s.Pod.UID == p.uid() }):
		return true, nil
	}
	// An earlier agent has enrolled it, or the kernel has refused to take its rules away. If nobody serves it any more, its
	// traffic is refused until they go.
	if len(p.addrs()) == 0 {
		return false, nil
	}
	ns, err := a.seeker.find(ctx, p.sandboxUID(), p.addrs())
	if err != nil {
		return false, err
	}
	defer func() { _ = ns.Close() }()
	return a.cfg.Clean(ns)
}

// annotation returns what the annotation of the pod is, as far as this agent knows: what it wrote last when p is from
// before that. t may be nil.
func (t *track) annotation(p *pod) string {
	if t != nil && t.wroteAt != "" && t.wroteAt == p.ResourceVersion {
		return t.wrote
	}
	return p.Annotations[annotation]
}

// say writes the annotation unless it is so. While that is another agent's business, again is when to try.
func (a *Agent) say(ctx context.Context, p *pod, t *track, state string) (again time.Duration, err error) {
	if t.annotation(p) == state {
		return 0, nil
	}
	if a.cfg.Superseded() {
		return supersededLook, nil
	}
	if err := a.client.annotate(ctx, p, state); err != nil {
		if gone(err) {
			return 0, nil // its event is on the way
		}
		return 0, err
	}
	t.wrote, t.wroteAt = state, p.ResourceVersion
	return 0, nil
}

// host makes the host let probes through to exactly these addresses of the pod, and take others' marks away there. What
// fails is kept in t.hostErr and tried again with the next call.
func (a *Agent) host(t *track, addrs []netip.Addr) {
	a.hostTurn.RLock()
	defer a.hostTurn.RUnlock()
	for _, addr := range t.addrs {
		if slices.Contains(addrs, addr) {
			continue
		}
		if err := a.cfg.HostRules.Remove(addr, t.ref.uid); err != nil {
			a.cfg.Logger.Warn("removing the probes' exemption failed", "pod", t.key, "address", addr, "error", err)
		}
	}
	t.addrs, t.hostErr = slices.Clone(addrs), nil
	t.guarded = slices.DeleteFunc(t.guarded, func(addr netip.Addr) bool { return !slices.Contains(addrs, addr) })
	for _, addr := range addrs {
		if slices.Contains(t.guarded, addr) {
			continue
		}
		if err := a.cfg.HostRules.Add(addr, t.ref.uid); err != nil {
			t.hostErr = fmt.Errorf("let the kubelet's probes through to %s: %w", addr, err)
			continue
		}
		t.guarded = append(t.guarded, addr)
	}
}

// options adds a pod's own wishes to what is captured of every pod, and warns of what cannot be.
func (a *Agent) options(c enrol.Capture) (o redirect.Options, warnings []string) {
	o = a.cfg.Options()
	o.Ingress = o.Ingress || c.Ingress
	switch c.DNS {
	case enrol.DNSOn:
		o.DNS = true
	case enrol.DNSOff:
		o.DNS = false
	}
	o.VirtualInterfaces = c.VirtualInterfaces
	o.IncludeInbound, o.ExcludeInbound, o.ExcludeOutbound = c.IncludeInbound, c.ExcludeInbound, c.ExcludeOutbound
	o.IncludeOutboundRanges, o.ExcludeOutboundRanges = c.IncludeRanges, c.ExcludeRanges
	if o.HostPorts = c.HostPorts; len(c.HostPorts) > 0 { // a new node changes only the pods that it is for
		all := append(slices.Clone(o.HostAddresses), a.hosts.addrs()...)
		slices.SortFunc(all, netip.Addr.Compare)
		if all = slices.Compact(all); len(all) > redirect.MaxAddresses {
			return o, []string{fmt.Sprintf("annotation %s: closed to other nodes, which have more than %d addresses",
				enrol.AnnotationHostPorts, redirect.MaxAddresses)}
		}
		o.HostAddresses = all
	}
	return o, nil
}

// tell reports a pod's warnings when they are others than before.
func (a *Agent) tell(t *track, warnings []string) {
	text := strings.Join(warnings, "; ")
	if text == t.warned {
		return
	}
	t.warned = text
	for _, w := range warnings {
		a.cfg.Logger.Warn("annotation is not honoured", "pod", t.key, "reason", w)
	}
	if text != "" {
		a.events.warn(t.ref, reasonIgnored, text)
	}
}
