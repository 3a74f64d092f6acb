package pool

// Conns returns the tunnels that take streams, in no order.
func (p *Pool) Conns() []*Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []*Conn
	for _, g := range p.groups {
		all = append(all, g.conns...)
	}
	return all
}

// All returns the tunnels that have not ended, those that take no further streams included, in no order.
func (p *Pool) All() []*Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]*Conn, 0, len(p.all))
	for c := range p.all {
		all = append(all, c)
	}
	return all
}

// Retain retires the tunnels whose key keep does not want any more. keep is called without a lock held.
func (p *Pool) Retain(keep func(Key) bool) {
	for _, c := range p.Conns() {
		if !keep(c.key) {
			c.Retire()
		}
	}
}

// Drain begins a graceful end: a tunnel is drained as soon as it has no streams. Connections that are on their way
// still get tunnels. The returned channel is closed when no tunnel is left for once.
func (p *Pool) Drain() <-chan struct{} {
	p.mu.Lock()
	p.draining = true
	var idle []*Conn
	for _, g := range p.groups {
		for _, c := range g.conns {
			if c.streams == 0 {
				idle = append(idle, c)
			}
		}
	}
	for _, c := range idle {
		p.removeLocked(c)
	}
	empty := p.emptyLocked()
	p.mu.Unlock()
	for _, c := range idle {
		c.drain()
	}
	return empty
}

// Close ends all tunnels at once with err, those that were retired included, and waits until they have ended. It must
// not be called on a loop; the loops must run.
func (p *Pool) Close(err error) {
	p.mu.Lock()
	first := !p.closed
	p.closed, p.draining = true, true
	if p.sweep != nil {
		p.sweep.Stop()
		p.sweep = nil
	}
	all := make([]*Conn, 0, len(p.all))
	for c := range p.all {
		all = append(all, c)
	}
	empty := p.emptyLocked()
	p.mu.Unlock()
	if first {
		p.cancel(ErrClosed)
	}
	for _, c := range all {
		c.close(err)
	}
	p.dials.Wait()
	<-empty
}
