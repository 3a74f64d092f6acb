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
	// thrownOut is how many strikes a tunnel counts that ended by its peer's fault. It has cost a handshake and all that was
	// done for the peer until then, and no honest peer has a second one.
	thrownOut = freeStrikes
	// forgiven is how long after its last strike an address is as good as any other.
	forgiven = 10 * time.Second
	// mostWaiting is how many connections of one address wait; more are reset at once.
	mostWaiting = 16
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
	last    time.Time // of the strikes
	waiting int
	began   time.Time // when the last handshake after a penalty did
}

// strike counts a handshake or tunnel that ended by its peer's fault as so many strikes.
func (p *penalties) strike(peer netip.Addr, n int) {
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
	o.strikes += n
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

// turn says how long a peer has to wait before its next handshake. Zero means that it begins now: a penalty after the last
// strike, and as long after the last one that waited, so that they never come in a crowd.
func (p *penalties) turn(peer netip.Addr) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	o := p.offenders[peer]
	if o == nil || o.strikes <= freeStrikes || now.Sub(o.last) > forgiven {
		return 0
	}
	at := o.last
	if o.began.After(at) {
		at = o.began
	}
	at = at.Add(p.least << min(o.strikes-freeStrikes-1, penaltyDoubles))
	if d := at.Sub(now); d > 0 {
		return d
	}
	o.began = now
	return 0
}

// queue takes a place for a connection that has to wait, if there is one; leave gives it back.
func (p *penalties) queue(peer netip.Addr) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	o := p.offenders[peer]
	if o == nil || o.waiting >= mostWaiting {
		return false
	}
	o.waiting++
	return true
}

func (p *penalties) leave(peer netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.offenders[peer].waiting-- // who waits is not forgotten
}
