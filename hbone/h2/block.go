package h2

import "encoding/binary"

// headers starts a header block (RFC 9113 section 6.2).
func (s *Session) headers(f frameHeader, p []byte, ev Events) error {
	pad := 0
	if f.flags&flagPadded != 0 {
		if len(p) < 1 {
			return connFault(FrameSizeError, "padded HEADERS without pad length")
		}
		pad, p = int(p[0]), p[1:]
	}
	if f.flags&flagPriority != 0 {
		if len(p) < 5 {
			return connFault(FrameSizeError, "HEADERS without its priority")
		}
		if binary.BigEndian.Uint32(p)&maxStreamID == f.stream {
			return connFault(ProtocolError, "stream depends on itself")
		}
		p = p[5:]
	}
	if pad > len(p) {
		return connFault(ProtocolError, "padding is longer than the frame")
	}
	p = p[:len(p)-pad]
	end := f.flags&flagEndStream != 0
	if f.flags&flagEndHeaders != 0 {
		return s.headerBlock(f.stream, p, end, ev)
	}
	s.parser.blockID, s.parser.blockEnd, s.parser.blockSize = f.stream, end, 1
	s.parser.block = append([]byte(nil), p...)
	return nil
}

func (s *Session) continuation(f frameHeader, p []byte, ev Events) error {
	ps := &s.parser
	if ps.blockID == 0 {
		return connFault(ProtocolError, "CONTINUATION without HEADERS")
	}
	// A block may be a little larger than what it decodes to; frames that add little are a flood (CVE-2024-27316).
	ps.blockSize++
	if ps.blockSize > 32 || len(ps.block)+len(p) > 2*int(s.cfg.MaxHeaderList) {
		return connFault(EnhanceYourCalm, "header block is too large")
	}
	ps.block = append(ps.block, p...)
	if f.flags&flagEndHeaders == 0 {
		return nil
	}
	block, end := ps.block, ps.blockEnd
	ps.block, ps.blockID = nil, 0
	return s.headerBlock(f.stream, block, end, ev)
}

func (s *Session) headerBlock(id uint32, block []byte, end bool, ev Events) error {
	h, err := s.block.read(block)
	if err != nil {
		return err
	}
	cost := largeListCost * int64(min(s.block.size, s.cfg.MaxHeaderList)>>10) // what is beyond the limit is not kept
	s.block.price = 1
	if s.block.size <= largeList {
		s.block.price += cost
	} else if err := s.chargeFor(cost, "large header lists"); err != nil {
		return err
	}
	if st := s.streams[id]; st != nil {
		return s.laterBlock(st, h, end, ev)
	}
	if !s.cfg.Server {
		return s.closedOrIdle(id, "HEADERS")
	}
	return s.request(id, h, end, ev)
}

// request opens a stream for a peer's request.
func (s *Session) request(id uint32, h *Header, end bool, ev Events) error {
	if id%2 == 0 {
		return connFault(ProtocolError, "client opened an even stream")
	}
	if id > s.refuseAbove {
		return s.chargeFor(s.block.price, "requests behind the final GOAWAY") // the peer retries elsewhere
	}
	if id <= s.lastID {
		if s.cut.has(id) {
			return s.chargeFor(s.block.price, "HEADERS on closed streams")
		}
		return connFault(StreamClosed, "HEADERS on a closed stream")
	}
	s.lastID = id
	if err := s.unread(); err != nil {
		return err
	}
	if uint32(s.active) >= s.cfg.MaxStreams {
		s.appendReset(id, RefusedStream)
		return s.chargeFor(s.block.price, "streams above the limit")
	}
	if why := s.block.check(true, false); why != "" {
		s.appendReset(id, ProtocolError)
		return s.chargeFor(s.block.price, "malformed requests")
	}
	st := s.newStream(id)
	st.gotHead, st.remoteEnd, st.price = true, end, uint8(s.block.price)
	ev.OnHeaders(st, h, end)
	return nil
}

// laterBlock is a response, or trailers.
func (s *Session) laterBlock(st *Stream, h *Header, end bool, ev Events) error {
	if st.remoteEnd {
		return s.streamFault(st, StreamClosed, "HEADERS behind END_STREAM", ev)
	}
	trailers := st.gotHead
	if why := s.block.check(false, trailers); why != "" {
		return s.streamFault(st, ProtocolError, why, ev)
	}
	switch {
	case trailers && !end:
		return s.streamFault(st, ProtocolError, "trailers without END_STREAM", ev)
	case trailers:
		st.remoteEnd = true
		s.removeIfDone(st)
		ev.OnData(st, nil, true)
	case h.Status < 200:
		if end {
			return s.streamFault(st, ProtocolError, "informational response with END_STREAM", ev)
		}
		return s.chargeFor(s.block.price, "informational responses")
	default:
		st.gotHead, st.remoteEnd = true, end
		s.removeIfDone(st)
		ev.OnHeaders(st, h, end)
	}
	return nil
}
