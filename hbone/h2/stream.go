package h2

import "encoding/binary"

// Stream is one CONNECT exchange. It belongs to its Session.
type Stream struct {
	// ID is the stream identifier.
	ID uint32
	// User is for the caller.
	User any

	send      int64 // the peer's credit to us
	recv      int64 // our credit to the peer
	target    int64 // what recv is topped up to
	drained   int64 // taken by the application, not given back as credit yet
	grantedAt int64
	gotHead   bool
	answered  bool
	localEnd  bool
	remoteEnd bool
	gone      bool
	price     uint8 // server: what its request costs the peer when it comes to nothing
}

// LocalEnd reports that this side has sent END_STREAM.
func (st *Stream) LocalEnd() bool { return st.localEnd }

// RemoteEnd reports that the peer has sent END_STREAM.
func (st *Stream) RemoteEnd() bool { return st.remoteEnd }

// Answered reports that the response to this side's request has come (client).
func (st *Stream) Answered() bool { return st.gotHead }

// Gone reports that the stream has left its session, by reset or because both directions have ended.
func (st *Stream) Gone() bool { return st.gone }

func (s *Session) newStream(id uint32) *Stream {
	st := &Stream{ID: id, send: s.peerInitial, recv: int64(s.cfg.StreamWindow), target: int64(s.cfg.StreamWindow), grantedAt: s.Now}
	s.streams[id] = st
	s.active++
	return st
}

func (s *Session) remove(st *Stream) {
	if st.gone {
		return
	}
	st.gone = true
	s.resize(st, -st.target)
	delete(s.streams, st.ID)
	s.active--
}

func (s *Session) removeIfDone(st *Stream) {
	if st.localEnd && st.remoteEnd {
		s.remove(st)
	}
}

// Open starts a stream with a request (client). The error is ErrStreamLimit or ErrGoingAway.
func (s *Session) Open(h *Header) (*Stream, error) {
	if s.GoingAway() || s.err != nil {
		return nil, ErrGoingAway
	}
	if uint32(s.active) >= s.peerStreams {
		return nil, ErrStreamLimit
	}
	st := s.newStream(s.nextID)
	s.nextID += 2
	// A server may answer in full and send RST_STREAM behind it (RFC 9113 section 8.1), which then is on a closed stream:
	// one for each that is opened is no flood.
	s.budget.refund()
	s.appendBlock(st.ID, appendRequest(s.startBlock(make([]byte, 0, blockSize)), h), false)
	return st, nil
}

// Respond answers a stream (server). With end set no DATA follows, and a peer that has not ended its direction is told
// to stop with RST_STREAM(NO_ERROR) (RFC 9113 section 8.1); the stream is gone then.
func (s *Session) Respond(st *Stream, status int, fields []Field, end bool) {
	if st.gone || st.localEnd {
		return
	}
	st.answered = true
	s.appendBlock(st.ID, appendResponse(s.startBlock(make([]byte, 0, blockSize)), status, fields), end)
	if !end {
		return
	}
	st.localEnd = true
	if !st.remoteEnd {
		// The peer may end its side by a reset as well (Envoy does), which crosses this one: one for each is no flood.
		s.budget.refund()
		s.appendReset(st.ID, NoError)
	}
	s.remove(st)
}

// blockSize is the room on the stack for a header block; longer ones go to the heap.
const blockSize = 768

// startBlock begins a header block in b.
func (s *Session) startBlock(b []byte) []byte {
	if s.tableUpdate != tableOwed {
		return b
	}
	s.tableUpdate = tableTold
	return append(b, tableSizeZero)
}

func (s *Session) appendBlock(id uint32, block []byte, end bool) {
	typ, flags := byte(frameHeaders), byte(0)
	if end {
		flags = flagEndStream
	}
	for {
		n := min(len(block), s.peerMaxFrame)
		last := n == len(block)
		if last {
			flags |= flagEndHeaders
		}
		s.out = appendFrameHeader(s.out, n, typ, flags, id)
		s.out = append(s.out, block[:n]...)
		if last {
			return
		}
		block, typ, flags = block[n:], frameContinuation, 0
	}
}

// Window returns how many bytes of DATA the stream may send now.
func (s *Session) Window(st *Stream) int {
	if st.gone || st.localEnd {
		return 0
	}
	return int(max(0, min(s.sendWindow, st.send)))
}

// StreamBlocked reports that the stream's own window is used up (as opposed to the connection's).
func (st *Stream) StreamBlocked() bool { return st.send <= 0 }

// DataHeader writes the header of a DATA frame of n bytes, n at most Window and MaxData, into b[:FrameHeaderLen] and
// accounts for it. Out has to be sent first.
func (s *Session) DataHeader(b []byte, st *Stream, n int, end bool) {
	var flags byte
	if end {
		flags = flagEndStream
	}
	putFrameHeader(b, n, frameData, flags, st.ID)
	s.sendWindow -= int64(n)
	st.send -= int64(n)
	if end {
		st.localEnd = true
		s.removeIfDone(st)
	}
}

// MaxData is the largest DATA payload that every peer accepts.
const MaxData = minMaxFrameSize

// End ends this side's direction: an empty DATA frame with END_STREAM goes to Out.
func (s *Session) End(st *Stream) {
	if st.gone || st.localEnd {
		return
	}
	s.out = appendFrameHeader(s.out, 0, frameData, flagEndStream, st.ID)
	st.localEnd = true
	s.removeIfDone(st)
}

// Reset ends the stream at once with RST_STREAM. OnReset is not called.
func (s *Session) Reset(st *Stream, code ErrCode) {
	if st.gone {
		return
	}
	s.appendReset(st.ID, code)
	s.remove(st)
}

// Drained says that the application has taken n bytes of the stream's payload. It becomes credit for the peer in steps
// of half a window; how large windows become is in window.go.
func (s *Session) Drained(st *Stream, n int) {
	if st.gone || st.remoteEnd {
		return
	}
	st.drained += int64(n)
	if st.drained < st.target/2 {
		return
	}
	grant := st.drained + s.adapt(st)
	st.grantedAt, st.drained = s.Now, 0
	if grant == 0 {
		return
	}
	st.recv += grant
	s.appendWindowUpdate(st.ID, grant)
}

// received accounts for n bytes of DATA against the connection; they are given back at once, because what bounds memory
// are the windows of the streams: a stalled stream must not hold back the others.
func (s *Session) received(n int) error {
	s.recvWindow -= int64(n)
	if s.recvWindow < 0 {
		return connFault(FlowControlError, "connection window exceeded")
	}
	if s.recvOwed += int64(n); s.recvOwed >= int64(s.cfg.ConnWindow)/2 {
		s.appendWindowUpdate(0, s.recvOwed)
		s.recvWindow += s.recvOwed
		s.recvOwed = 0
	}
	return nil
}

func (s *Session) windowUpdate(f frameHeader, p []byte, ev Events) error {
	if len(p) != 4 {
		return connFault(FrameSizeError, "WINDOW_UPDATE is not 4 bytes")
	}
	n := int64(binary.BigEndian.Uint32(p) & maxWindow)
	if f.stream == 0 {
		if n == 0 {
			return connFault(ProtocolError, "WINDOW_UPDATE of 0")
		}
		was := s.sendWindow
		if s.sendWindow += n; s.sendWindow > maxWindow {
			return connFault(FlowControlError, "connection window above 2^31-1")
		}
		if was <= 0 && s.sendWindow > 0 {
			ev.OnWindow(nil)
		}
		return nil
	}
	st := s.streams[f.stream]
	if st == nil {
		return s.closedOrIdle(f.stream, "WINDOW_UPDATE")
	}
	if n == 0 {
		return s.streamFault(st, ProtocolError, "WINDOW_UPDATE of 0", ev)
	}
	was := st.send
	if st.send += n; st.send > maxWindow {
		return s.streamFault(st, FlowControlError, "stream window above 2^31-1", ev)
	}
	if was <= 0 && st.send > 0 {
		ev.OnWindow(st)
	}
	return nil
}

// closedOrIdle tells a frame on a stream that is over, which is late and harmless, from one on a stream that never was.
func (s *Session) closedOrIdle(id uint32, what string) error {
	opened := id < s.nextID && id%2 == 1
	if s.cfg.Server {
		opened = id <= s.lastID && id%2 == 1 || id > s.refuseAbove
	}
	if !opened {
		return connFault(ProtocolError, what+" on an idle stream")
	}
	return nil
}

// streamFault ends one stream for a fault of the peer (RFC 9113 section 5.4.2).
//
// It is charged: a peer that makes this side reset its streams has the work done for nothing as well as one that resets
// them itself (CVE-2025-8671).
func (s *Session) streamFault(st *Stream, code ErrCode, reason string, ev Events) error {
	s.Reset(st, code)
	ev.OnReset(st, code, reason)
	return s.chargeFor(max(1, int64(st.price)), "stream errors")
}
