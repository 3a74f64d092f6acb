package proxy

import (
	"net/netip"
	"sync"
	"time"
)

// A handshake costs a signature and a few milliseconds of a processor, so a peer that is thrown out and comes back at once
// takes from the others what it likes. Whoever fails again and again has to wait before its next handshake begins.
const (
	// freeStrikes are those that cost nothing: certificates that have just changed, a peer of another version.
	freeStrikes = 3
	// leastPenalty is for the first strike after those, unless Config says otherwise; each further one doubles it, up to
	// penaltyDoubles times.
	leastPenalty   = 50 * time.Millisecond
	penaltyDoubles = 5
	// forgiven is how long after its last strike an address is as good as any other.
	forgiven = 10 * time.Second
	// mostWaiting is how many connections of one address wait; more are reset at once.
	mostWaiting = 8
	// mostOffenders bounds the memory; beyond it the one that was quiet longest is forgiven.
	mostOffenders = 1024
)

// penalties are the addresses of a node's peers that have failed lately.
type penalties struct {
	least time.Duration // negative: there are none

	mu        sync.Mutex
	offenders map[netip.Addr]*offender
}

type offender struct {
	strikes int
	last    time.Time
	waiting int
}

// strike counts a handshake or tunnel that ended by its peer's fault.
func (p *penalties) strike(peer netip.Addr) {
	if p.least < 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	o := p.offenders[peer]
	if o == nil {
		if p.offenders == nil {
			p.offenders = make(map[netip.Addr]*offender)
		}
		p.makeRoomLocked(now)
		o = &offender{}
		p.offenders[peer] = o
	}
	if now.Sub(o.last) > forgiven {
		o.strikes = 0
	}
	o.strikes++
	o.last = now
}

// makeRoomLocked forgets who is forgiven, and if nobody is, who was quiet longest.
func (p *penalties) makeRoomLocked(now time.Time) {
	if len(p.offenders) < mostOffenders {
		return
	}
	var oldest netip.Addr
	first := now
	for addr, o := range p.offenders {
		switch {
		case o.waiting > 0:
		case now.Sub(o.last) > forgiven:
			delete(p.offenders, addr)
		case o.last.Before(first):
			oldest, first = addr, o.last
		}
	}
	if len(p.offenders) >= mostOffenders {
		delete(p.offenders, oldest)
	}
}

// wait says how long a peer's next handshake has to wait. ok is false when too many of it wait already; otherwise, after a
// wait that is not zero, waited has to be called.
func (p *penalties) wait(peer netip.Addr) (d time.Duration, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	o := p.offenders[peer]
	if o == nil || o.strikes <= freeStrikes || time.Since(o.last) > forgiven {
		return 0, true
	}
	if o.waiting >= mostWaiting {
		return 0, false
	}
	o.waiting++
	return p.least << min(o.strikes-freeStrikes-1, penaltyDoubles), true
}

func (p *penalties) waited(peer netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if o := p.offenders[peer]; o != nil {
		o.waiting--
	}
}
