package kubenode

import "github.com/culvert-mesh/culvert/redirect/netns"

// Owned reports whether the agent's own DaemonSet was seen.
func (a *Agent) Owned() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.owned
}

// Clean is what a Config without Clean has.
func Clean(ns *netns.NS) (busy bool, err error) { return clean(ns) }
