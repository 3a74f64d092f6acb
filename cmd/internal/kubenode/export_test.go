package kubenode

// Owned reports whether the agent's own DaemonSet was seen.
func (a *Agent) Owned() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.owned
}
