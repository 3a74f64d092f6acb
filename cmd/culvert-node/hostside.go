package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/culvert-mesh/culvert/redirect"
	"github.com/culvert-mesh/culvert/redirect/hostrules"
	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/procns"
)

const (
	// hostAudit is how often the host's rules and addresses are looked at.
	hostAudit = 5 * time.Second
	// hostRetry is the pause after the first failure to make the host's rules; it doubles up to maxHostRetry.
	hostRetry    = time.Second
	maxHostRetry = time.Minute
)

// enrolled are the pods of the node; it is a kubenode.Agent.
type enrolled interface {
	Ready() <-chan struct{}
	WithAddresses(f func(map[netip.Addr]string) error) error
	Refresh()
}

// hostSide keeps the rules in the host's namespace by which the kubelet's probes are known. While they are not to be had
// probes meet the policies like everybody's connections; it says so once, and goes on trying. It is the
// kubenode.HostRules.
type hostSide struct {
	procRoot string
	log      *slog.Logger
	retry    time.Duration
	rules    atomic.Pointer[hostrules.Rules] // nil until they are in the kernel; then pods trust the mark

	turn    sync.Mutex // held while the rules are made or changed
	ns      *netns.NS  // nil until it is found
	removed bool       // for good
	damage  string     // that the last audit found and could not repair, and has told
	trouble string     // why the addresses could not be read, told too

	mu    sync.Mutex
	addrs []netip.Addr // of the host
	open  []string     // what the self-test found, in words
}

func newHostSide(procRoot string, log *slog.Logger) *hostSide {
	h := &hostSide{procRoot: procRoot, log: log, retry: hostRetry}
	h.turn.Lock()
	defer h.turn.Unlock()
	rules, err := h.make()
	if err != nil {
		log.Error("no rules on the host: probes of enrolled pods meet their policies until they can be made", "error", err)
		return h
	}
	h.rules.Store(rules)
	return h
}

// adopt returns the rules with the pods that an earlier agent has left in them. The caller has the turn.
func (h *hostSide) adopt() (*hostrules.Rules, error) {
	if h.ns == nil {
		ns, err := procns.Host(h.procRoot)
		if err != nil {
			return nil, err
		}
		h.ns = ns
	}
	return hostrules.New(hostrules.Config{
		NS: h.ns, Logger: h.log,
		Kubelet: func() (hostrules.Kubelet, error) { return hostrules.FindKubelet(h.procRoot, h.ns) },
	})
}

// make makes the rules in the kernel; when it fails that is a finding. The caller has the turn.
func (h *hostSide) make() (rules *hostrules.Rules, err error) {
	defer func() {
		if err != nil {
			h.find([]string{fmt.Sprintf("missing: the host's rules cannot be made: %v", err)})
		}
	}()
	if rules, err = h.adopt(); err != nil {
		return nil, err
	}
	addrs, err := hostrules.NodeAddresses(h.ns)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	h.addrs = addrs
	h.mu.Unlock()
	if _, _, err := rules.Repair(); err != nil {
		return nil, err
	}
	return rules, nil
}

// makeLate makes the rules when that has failed before. The addresses of all pods are in them before any pod trusts the
// mark, so that nobody else's reaches it.
func (h *hostSide) makeLate(pods enrolled) error {
	h.turn.Lock()
	defer h.turn.Unlock()
	if h.removed {
		return nil
	}
	rules, err := h.make()
	if err != nil {
		return err
	}
	return pods.WithAddresses(func(addrs map[netip.Addr]string) error {
		for addr, uid := range addrs { // besides those of an earlier agent, until prune
			if err := rules.Add(addr, uid); err != nil {
				h.log.Warn("letting the kubelet's probes through failed", "address", addr, "error", err)
			}
		}
		h.rules.Store(rules)
		return nil
	})
}

// Add implements kubenode.HostRules. Without rules the addresses wait at the agent for makeLate.
func (h *hostSide) Add(addr netip.Addr, uid string) error {
	if rules := h.rules.Load(); rules != nil {
		return rules.Add(addr, uid)
	}
	return nil
}

// Remove implements kubenode.HostRules.
func (h *hostSide) Remove(addr netip.Addr, uid string) error {
	if rules := h.rules.Load(); rules != nil {
		return rules.Remove(addr, uid)
	}
	return nil
}

// owns reports whether the address is one of the host's.
func (h *hostSide) owns(addr netip.Addr) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, found := slices.BinarySearchFunc(h.addrs, addr.Unmap(), netip.Addr.Compare)
	return found
}

// options adds the host's side to what is captured in every pod.
func (h *hostSide) options(o redirect.Options) redirect.Options {
	h.mu.Lock()
	defer h.mu.Unlock()
	o.NodeAddresses = h.addrs
	o.ProbeMark = h.rules.Load() != nil
	return o
}

// run keeps the rules until ctx ends; they stay then.
func (h *hostSide) run(ctx context.Context, pods enrolled) error {
	if !h.retryUntilMade(ctx, pods) {
		return nil
	}
	h.test(ctx)
	ready := pods.Ready()
	tick := time.NewTicker(hostAudit)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ready:
			ready = nil
			// What an earlier agent has left of pods that are gone.
			h.prune(pods)
		case <-tick.C:
			h.audit(pods)
		}
	}
}

// retryUntilMade reports false when ctx ended before the rules could be made.
func (h *hostSide) retryUntilMade(ctx context.Context, pods enrolled) bool {
	if h.rules.Load() != nil {
		return true
	}
	for pause := h.retry; h.rules.Load() == nil; pause = min(2*pause, maxHostRetry) {
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return false
		}
		if err := h.makeLate(pods); err != nil {
			h.log.Debug("making the host's rules failed again", "error", err)
		}
	}
	h.log.Info("the host has its rules now")
	pods.Refresh()
	return true
}

// prune takes addresses out of the rules that are no enrolled pod's.
func (h *hostSide) prune(pods enrolled) {
	h.turn.Lock()
	defer h.turn.Unlock()
	if h.removed {
		return
	}
	if err := pods.WithAddresses(h.rules.Load().Apply); err != nil {
		h.log.Warn("clearing old addresses of the host's rules failed", "error", err)
	}
}

// tell says what an audit has found: damage that lasts once, as long as it stays the same. The caller has the turn.
func (h *hostSide) tell(found, left []hostrules.Finding, err error) {
	before := h.damage
	h.damage = ""
	if err == nil && len(found) == 0 {
		return
	}
	if err != nil || len(left) > 0 {
		h.damage = fmt.Sprint(texts(found), texts(left), err)
		if h.damage == before {
			return
		}
	}
	h.log.Warn("rules for the kubelet's probes were damaged", "findings", texts(found), "left", texts(left), "error", err)
}

func (h *hostSide) audit(pods enrolled) {
	h.turn.Lock()
	defer h.turn.Unlock()
	if h.removed {
		return
	}
	h.tell(h.rules.Load().Repair())
	addrs, err := hostrules.NodeAddresses(h.ns)
	if err != nil {
		if text := err.Error(); text != h.trouble {
			h.trouble = text
			h.log.Warn("reading the node's addresses failed", "error", err)
		}
		return
	}
	h.trouble = ""
	h.mu.Lock()
	changed := !slices.Equal(addrs, h.addrs)
	h.addrs = addrs
	h.mu.Unlock()
	if changed {
		h.log.Info("the node has other addresses", "addresses", addrs)
		pods.Refresh()
	}
}

// test finds out what the exemption of the kubelet leaves open on this node.
func (h *hostSide) test(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	h.turn.Lock()
	defer h.turn.Unlock()
	if h.removed {
		return
	}
	findings, err := h.rules.Load().SelfTest(ctx)
	open := texts(findings)
	if err != nil {
		open = append(open, fmt.Sprintf("unknown: the self-test failed: %v", err))
	}
	for _, text := range open {
		h.log.Warn("the exemption of the kubelet's probes is wider than it should be", "finding", text)
	}
	h.find(open)
}

func (h *hostSide) find(open []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.open = open
}

// findings returns what the exemption leaves open, in words; none is the narrowest.
func (h *hostSide) findings() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]string{}, h.open...)
}

// remove takes the rules away, also those of an earlier agent where this one could make none.
func (h *hostSide) remove() error {
	h.turn.Lock()
	defer h.turn.Unlock()
	h.removed = true
	rules := h.rules.Load()
	if rules == nil {
		var err error
		if rules, err = h.adopt(); err != nil {
			return fmt.Errorf("remove host rules: %w", err)
		}
	}
	return rules.Delete()
}

func texts[T fmt.Stringer](list []T) []string {
	out := make([]string, len(list))
	for i, item := range list {
		out[i] = item.String()
	}
	return out
}
