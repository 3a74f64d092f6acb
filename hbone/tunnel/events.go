package tunnel

import "github.com/culvert-mesh/culvert/hbone/h2"

// events is the tunnel as its session sees it, so that these methods are not part of Tunnel's own.
type events Tunnel

// OnSettings implements h2.Events.
func (e *events) OnSettings() {}

// OnHeaders implements h2.Events.
func (e *events) OnHeaders(s *h2.Stream, h *h2.Header, end bool) {
	t := (*Tunnel)(e)
	if st, ok := s.User.(*Stream); ok {
		if st.Handler != nil {
			st.Handler.Response(h, end)
		}
		return
	}
	st := &Stream{t: t, s: s, asked: true}
	s.User = st
	t.requests = append(t.requests, request{st: st, head: h, end: end})
}

// request is one of a peer's that the owner has not been told of, or data that came with it.
type request struct {
	st   *Stream
	head *h2.Header // nil for data
	data []byte     // in the read's buffer
	end  bool
}

// keepRequests is for how many requests of one read room is kept for the next.
const keepRequests = 16

// ask gives the owner the requests of this read, but for those that the peer has taken back in the same read: they have
// cost no more than to be decoded.
func (t *Tunnel) ask() {
	requests := t.requests
	if t.requests = requests[:0]; cap(requests) > keepRequests {
		t.requests = nil
	}
	for i, r := range requests {
		requests[i] = request{}
		if t.err != nil || r.st.Gone() {
			continue
		}
		if r.head != nil {
			r.st.asked = false
			t.cfg.OnRequest(r.st, r.head)
			if r.st.Handler == nil && !r.st.Gone() {
				r.st.Reset(h2.RefusedStream)
			}
		}
		if r.head == nil || r.end {
			(*events)(t).OnData(r.st.s, r.data, r.end)
		}
	}
}

// OnData implements h2.Events.
func (e *events) OnData(s *h2.Stream, p []byte, end bool) {
	t := (*Tunnel)(e)
	st := s.User.(*Stream)
	if st.asked {
		t.requests = append(t.requests, request{st: st, data: p, end: end})
		return
	}
	if st.Handler == nil {
		return
	}
	if !st.touched {
		st.touched = true
		t.touched = append(t.touched, st)
	}
	st.Handler.Data(p, end)
}

// OnWindow implements h2.Events.
func (e *events) OnWindow(s *h2.Stream) {
	t := (*Tunnel)(e)
	if s == nil {
		t.resumeLater()
		return
	}
	// Once for all the credit of a read: a peer that gives it byte by byte would else have each byte read and sealed alone.
	if st := s.User.(*Stream); st.starved {
		st.starved = false
		t.credited = append(t.credited, st)
	}
}

// OnReset implements h2.Events.
func (e *events) OnReset(s *h2.Stream, code h2.ErrCode, fault string) {
	st := s.User.(*Stream)
	if st.Handler == nil {
		return
	}
	if st.touched {
		st.Handler.DataDone() // what came before the reset
	}
	h := st.Handler
	st.Handler = nil
	h.Closed(&ResetError{Code: code, Fault: fault})
}

// OnGoAway implements h2.Events.
func (e *events) OnGoAway(uint32, h2.ErrCode, string) {
	t := (*Tunnel)(e)
	if t.cfg.OnRequest == nil && !t.leaving {
		t.leaving = true
		t.loop.After(&t.grace, t.cfg.AnswerGrace, t.giveUp)
	}
	if t.draining {
		return
	}
	t.draining = true
	if t.cfg.OnDrain != nil {
		t.cfg.OnDrain(t)
	}
}

// giveUp ends the requests that the peer has left unanswered.
func (t *Tunnel) giveUp() {
	t.h2.Each(func(s *h2.Stream) {
		st := s.User.(*Stream)
		if s.Answered() || st.Handler == nil {
			return
		}
		h := st.Handler
		st.Reset(h2.Cancel)
		h.Closed(&ResetError{Code: h2.RefusedStream})
	})
}

// OnPong implements h2.Events.
func (e *events) OnPong(data [8]byte) {
	t := (*Tunnel)(e)
	switch data {
	case pingAlive:
		if t.pinged != 0 {
			t.h2.RTT = t.loop.Now() - t.pinged
			t.pinged = 0
			t.loop.After(&t.ping, t.cfg.PingInterval, t.onPing)
		}
	case pingDrain:
		if t.crossing {
			t.loop.After(&t.grace, t.cfg.CrossingGrace, t.finalGoAway)
		}
	}
}

// finalGoAway names the last stream that this side serves.
func (t *Tunnel) finalGoAway() {
	t.crossing, t.drained = false, true
	t.h2.GoAway(true, h2.NoError, "")
	t.settle()
}
