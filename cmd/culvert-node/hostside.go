package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/culvert-mesh/culvert/cmd/internal/kubenode"
	"github.com/culvert-mesh/culvert/redirect"
	"github.com/culvert-mesh/culvert/redirect/hostrules"
	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/procns"
)

// hostAudit is how often the host's rules and addresses are looked at.
const hostAudit = 5 * time.Second

// hostSide keeps the rules in the host's namespace by which the kubelet's probes are known. Where they are not to be had
// it says so, and probes meet the policies like everybody's connections.
type hostSide struct {
	log   *slog.Logger
	ns    *netns.NS        // nil without rules
	rules *hostrules.Rules // nil where the node cannot have them

	turn    sync.Mutex // held while the rules are changed
	removed bool       // for good

	mu    sync.Mutex
	addrs []netip.Addr // of the host
	open  []string     // what the self-test found, in words
}

func newHostSide(procRoot string, log *slog.Logger) *hostSide {
	h := &hostSide{log: log}
	err := func() (err error) {
		if h.ns, err = procns.Host(procRoot); err != nil {
			return err
		}
		if h.addrs, err = hostrules.NodeAddresses(h.ns); err != nil {
			return err
		}
		rules, err := hostrules.New(hostrules.Config{
			NS: h.ns, Logger: log,
			Kubelet: func() (hostrules.Kubelet, error) { return hostrules.FindKubelet(procRoot, h.ns) },
		})
		if err != nil {
			return err
		}
		if _, _, err := rules.Repair(); err != nil {
			return err
		}
		h.rules = rules // only now: pods trust the mark where the host keeps others from it
		return nil
	}()
	if err != nil {
		h.open = []string{fmt.Sprintf("missing: the host's rules cannot be made: %v", err)}
		log.Error("no rules on the host: probes of enrolled pods meet their policies", "error", err)
	}
	return h
}

// owns reports whether the address is one of the host's.
func (h *hostSide) owns(addr netip.Addr) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, found := slices.BinarySearchFunc(h.addrs, addr.Unmap(), netip.Addr.Compare)
	return found
}

// rulesOrNil returns the rules as what kubenode wants, or nil.
func (h *hostSide) rulesOrNil() kubenode.HostRules {
	if h.rules == nil {
		return nil
	}
	return h.rules
}

// options adds the host's side to what is captured in every pod.
func (h *hostSide) options(o redirect.Options) redirect.Options {
	h.mu.Lock()
	defer h.mu.Unlock()
	o.NodeAddresses = h.addrs
	o.ProbeMark = h.rules != nil
	return o
}

// run keeps the rules until ctx ends; they stay then.
func (h *hostSide) run(ctx context.Context, agent *kubenode.Agent) error {
	if h.rules == nil {
		return nil
	}
	h.test(ctx)
	ready := agent.Ready()
	tick := time.NewTicker(hostAudit)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ready:
			ready = nil
			// What an earlier agent has left of pods that are gone.
			h.prune(agent)
		case <-tick.C:
			h.audit(agent)
		}
	}
}

// prune takes addresses out of the rules that are no enrolled pod's.
func (h *hostSide) prune(agent *kubenode.Agent) {
	h.turn.Lock()
	defer h.turn.Unlock()
	if h.removed {
		return
	}
	if err := agent.WithAddresses(h.rules.Apply); err != nil {
		h.log.Warn("clearing old addresses of the host's rules failed", "error", err)
	}
}

func (h *hostSide) audit(agent *kubenode.Agent) {
	h.turn.Lock()
	defer h.turn.Unlock()
	if h.removed {
		return
	}
	found, left, err := h.rules.Repair()
	if err != nil || len(found) > 0 {
		h.log.Warn("rules for the kubelet's probes were damaged", "findings", texts(found), "left", texts(left), "error", err)
	}
	addrs, err := hostrules.NodeAddresses(h.ns)
	if err != nil {
		h.log.Warn("reading the node's addresses failed", "error", err)
		return
	}
	h.mu.Lock()
	changed := !slices.Equal(addrs, h.addrs)
	h.addrs = addrs
	h.mu.Unlock()
	if changed {
		h.log.Info("the node has other addresses", "addresses", addrs)
		agent.Refresh()
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
	findings, err := h.rules.SelfTest(ctx)
	open := texts(findings)
	if err != nil {
		open = append(open, fmt.Sprintf("unknown: the self-test failed: %v", err))
	}
	for _, text := range open {
		h.log.Warn("the exemption of the kubelet's probes is wider than it should be", "finding", text)
	}
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

// remove takes the rules away.
func (h *hostSide) remove() error {
	if h.rules == nil {
		return nil
	}
	h.turn.Lock()
	defer h.turn.Unlock()
	h.removed = true
	return h.rules.Delete()
}

func texts[T fmt.Stringer](list []T) []string {
	out := make([]string, len(list))
	for i, item := range list {
		out[i] = item.String()
	}
	return out
}
