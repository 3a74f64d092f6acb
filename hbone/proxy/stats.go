package proxy

// Tunnels returns how many tunnels the pod has to others, and others to it.
func (p *Pod) Tunnels() (outbound, inbound int) {
	return len(p.pool.Conns()), len(p.peers())
}
