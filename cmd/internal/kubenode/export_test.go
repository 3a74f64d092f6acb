package kubenode

import "github.com/culvert-mesh/culvert/redirect/netns"

// Owned reports whether the agent's own DaemonSet was seen, and whether it is followed.
func (a *Agent) Owned() (owned, followed bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.owned, a.owner.HasSynced()
}

// Clean is what a Config without Clean has.
func Clean(ns *netns.NS) (busy bool, err error) { return clean(ns) }
