package h2

import (
	"encoding/binary"
	"strconv"
)

// parser is where Feed stands inside the byte stream.
type parser struct {
	preface   int // bytes of the client's preface still expected
	sawFrame  bool
	head      [FrameHeaderLen]byte
	headLen   int
	inFrame   bool
	frame     frameHeader
	left      int // payload bytes of the frame that have not arrived
	pad       int // DATA: trailing padding; -1 until the length octet is read
	st        *Stream
	payload   []byte // control frames: what has arrived of the payload
	block     []byte // header block in progress
	blockID   uint32 // its stream, 0 when there is none
	blockEnd  bool
	blockSize int
	frames    uint64 // that have arrived wholly; a header block counts when its last frame has
}

func (p *parser) reset() { p.inFrame, p.headLen, p.st, p.pad = false, 0, nil, 0 }

// Feed consumes p, which is only read during the call, and calls ev. An error is final and always a *ConnError; a
// GOAWAY that says why is in Out then.
func (s *Session) Feed(p []byte, ev Events) error {
	if s.err != nil {
		return s.err
	}
	for len(p) > 0 {
		var err error
		switch {
		case s.parser.preface > 0:
			p, err = s.feedPreface(p)
		case !s.parser.inFrame:
			p, err = s.feedHeader(p, ev)
		case s.parser.frame.typ == frameData:
			p, err = s.feedData(p, ev)
		default:
			p, err = s.feedControl(p, ev)
		}
		if err != nil {
			return s.fail(err)
		}
	}
	return nil
}

func (s *Session) feedPreface(p []byte) ([]byte, error) {
	at := len(Preface) - s.parser.preface
	n := min(len(p), s.parser.preface)
	if string(p[:n]) != Preface[at:at+n] {
		return nil, connFault(ProtocolError, "peer does not speak HTTP/2")
	}
	s.parser.preface -= n
	return p[n:], nil
}

func (s *Session) feedHeader(p []byte, ev Events) ([]byte, error) {
	ps := &s.parser
	if ps.headLen == 0 && len(p) >= FrameHeaderLen {
		ps.frame = parseFrameHeader(p)
		p = p[FrameHeaderLen:]
	} else {
		n := copy(ps.head[ps.headLen:], p)
		ps.headLen += n
		p = p[n:]
		if ps.headLen < FrameHeaderLen {
			return p, nil
		}
		ps.frame = parseFrameHeader(ps.head[:])
	}
	ps.headLen, ps.inFrame, ps.left, ps.payload = 0, true, ps.frame.length, ps.payload[:0]
	if err := s.checkFrame(); err != nil {
		return nil, err
	}
	if ps.frame.typ == frameData {
		return p, s.startData(ev)
	}
	if ps.left == 0 {
		return p, s.endControl(ev)
	}
	return p, nil
}

// checkFrame refuses what can be refused by the frame header alone.
func (s *Session) checkFrame() error {
	f := s.parser.frame
	if f.length > minMaxFrameSize {
		return connFault(FrameSizeError, "frame of "+strconv.Itoa(f.length)+" bytes")
	}
	if !s.parser.sawFrame {
		if f.typ != frameSettings || f.flags&flagAck != 0 {
			return connFault(ProtocolError, "first frame is not SETTINGS")
		}
		s.parser.sawFrame = true
	}
	if s.parser.blockID != 0 && (f.typ != frameContinuation || f.stream != s.parser.blockID) {
		return connFault(ProtocolError, "header block is interrupted")
	}
	onStream := f.stream != 0
	switch f.typ {
	case frameData, frameHeaders, framePriority, frameRSTStream, frameContinuation:
		if !onStream {
			return connFault(ProtocolError, "frame needs a stream")
		}
	case frameSettings, framePing, frameGoAway:
		if onStream {
			return connFault(ProtocolError, "frame must not be on a stream")
		}
	case framePushPromise:
		return connFault(ProtocolError, "PUSH_PROMISE")
	}
	return nil
}

func (s *Session) startData(ev Events) error {
	ps := &s.parser
	f := ps.frame
	if err := s.received(f.length); err != nil {
		return err
	}
	st := s.streams[f.stream]
	var err error
	switch {
	case st == nil:
		err = s.closedOrIdle(f.stream, "DATA")
	case st.remoteEnd:
		err = s.streamFault(st, StreamClosed, "DATA behind END_STREAM", ev)
	case !st.gotHead:
		err = s.streamFault(st, ProtocolError, "DATA before HEADERS", ev)
	case int64(f.length) > st.recv:
		err = s.streamFault(st, FlowControlError, "stream window exceeded", ev)
	default:
		st.recv -= int64(f.length)
	}
	if err != nil {
		return err
	}
	if st != nil && st.gone {
		st = nil
	}
	ps.st, ps.pad = st, 0
	if f.flags&flagPadded != 0 {
		if f.length == 0 {
			return connFault(FrameSizeError, "padded DATA without pad length")
		}
		ps.pad = -1
	}
	if f.length == 0 {
		if f.flags&flagEndStream == 0 {
			if err := s.charge("empty DATA frames"); err != nil {
				return err
			}
		}
		s.finishData(nil, ev)
	}
	return nil
}

func (s *Session) feedData(p []byte, ev Events) ([]byte, error) {
	ps := &s.parser
	if ps.pad < 0 {
		ps.pad = int(p[0])
		p = p[1:]
		ps.left--
		if ps.pad > ps.left {
			return nil, connFault(ProtocolError, "padding is longer than the frame")
		}
		if ps.pad == ps.left && ps.frame.flags&flagEndStream == 0 {
			if err := s.charge("empty DATA frames"); err != nil {
				return nil, err
			}
		}
		if ps.st != nil {
			s.Drained(ps.st, ps.pad+1)
		}
		if ps.left == 0 {
			s.finishData(nil, ev)
		}
		return p, nil
	}
	n := min(len(p), ps.left)
	data := p[:min(n, ps.left-ps.pad)]
	ps.left -= n
	if ps.left > 0 {
		if ps.st != nil && !ps.st.gone && len(data) > 0 {
			ev.OnData(ps.st, data, false)
		}
		ps.pad = min(ps.pad, ps.left)
		return p[n:], nil
	}
	s.finishData(data, ev)
	return p[n:], nil
}

func (s *Session) finishData(data []byte, ev Events) {
	st, end := s.parser.st, s.parser.frame.flags&flagEndStream != 0
	s.parser.frames++
	s.parser.reset()
	if st == nil || st.gone {
		return
	}
	if end {
		st.remoteEnd = true
		s.removeIfDone(st)
	}
	if end || len(data) > 0 {
		ev.OnData(st, data, end)
	}
}

func (s *Session) feedControl(p []byte, ev Events) ([]byte, error) {
	ps := &s.parser
	n := min(len(p), ps.left)
	ps.left -= n
	switch ps.frame.typ {
	case frameHeaders, frameSettings, framePing, frameGoAway, frameWindowUpdate, frameRSTStream, framePriority, frameContinuation:
		ps.payload = append(ps.payload, p[:n]...)
	}
	if ps.left > 0 {
		return p[n:], nil
	}
	return p[n:], s.endControl(ev)
}

func (s *Session) endControl(ev Events) error {
	ps := &s.parser
	f, payload := ps.frame, ps.payload
	ps.reset()
	if f.typ != frameHeaders && f.typ != frameContinuation || f.flags&flagEndHeaders != 0 {
		ps.frames++
	}
	if cap(ps.payload) > 1024 {
		ps.payload = nil
	}
	switch f.typ {
	case frameHeaders:
		return s.headers(f, payload, ev)
	case frameContinuation:
		return s.continuation(f, payload, ev)
	case frameSettings:
		return s.settings(f, payload, ev)
	case framePing:
		return s.ping(f, payload, ev)
	case frameGoAway:
		return s.goAway(payload, ev)
	case frameWindowUpdate:
		return s.windowUpdate(f, payload, ev)
	case frameRSTStream:
		return s.rstStream(f, payload, ev)
	case framePriority:
		if len(payload) != 5 {
			return connFault(FrameSizeError, "PRIORITY is not 5 bytes")
		}
		return s.charge("PRIORITY frames")
	default:
		return s.charge("unknown frames") // RFC 9113 section 4.1: ignored
	}
}

func (s *Session) settings(f frameHeader, p []byte, ev Events) error {
	if f.flags&flagAck != 0 {
		if len(p) != 0 {
			return connFault(FrameSizeError, "SETTINGS acknowledgement with payload")
		}
		s.block.dec.SetAllowedMaxDynamicTableSize(0)
		return s.charge("SETTINGS frames")
	}
	if len(p)%6 != 0 {
		return connFault(FrameSizeError, "SETTINGS is not a multiple of 6 bytes")
	}
	if err := s.charge("SETTINGS frames"); err != nil {
		return err
	}
	if !s.settingsKnown {
		s.settingsKnown, s.peerStreams = true, maxStreamID
	}
	initial := s.peerInitial // only the last value counts: a frame may hold 2,730 of them
	for ; len(p) > 0; p = p[6:] {
		id, v := binary.BigEndian.Uint16(p), binary.BigEndian.Uint32(p[2:])
		switch id {
		case settingHeaderTableSize:
			if v < defaultTable && s.tableUpdate == tableUntold {
				s.tableUpdate = tableOwed
			}
		case settingEnablePush:
			if v > 1 || (v == 1 && !s.cfg.Server) {
				return connFault(ProtocolError, "invalid SETTINGS_ENABLE_PUSH")
			}
		case settingMaxConcurrentStreams:
			s.peerStreams = v
		case settingInitialWindowSize:
			if v > maxWindow {
				return connFault(FlowControlError, "SETTINGS_INITIAL_WINDOW_SIZE above 2^31-1")
			}
			initial = int64(v)
		case settingMaxFrameSize:
			if v < minMaxFrameSize || v > maxMaxFrameSize {
				return connFault(ProtocolError, "invalid SETTINGS_MAX_FRAME_SIZE")
			}
			s.peerMaxFrame = int(v)
		}
	}
	opened := initial > s.peerInitial
	if err := s.adjustWindows(initial - s.peerInitial); err != nil {
		return err
	}
	s.peerInitial = initial
	s.out = appendFrameHeader(s.out, 0, frameSettings, flagAck, 0)
	if opened {
		for _, st := range s.streams {
			if st.send > 0 {
				ev.OnWindow(st)
			}
		}
	}
	ev.OnSettings()
	return nil
}

func (s *Session) adjustWindows(delta int64) error {
	if delta == 0 {
		return nil
	}
	for _, st := range s.streams {
		if st.send += delta; st.send > maxWindow {
			return connFault(FlowControlError, "stream window above 2^31-1")
		}
	}
	return nil
}

func (s *Session) ping(f frameHeader, p []byte, ev Events) error {
	if len(p) != 8 {
		return connFault(FrameSizeError, "PING is not 8 bytes")
	}
	if err := s.charge("PING frames"); err != nil {
		return err
	}
	if f.flags&flagAck != 0 {
		ev.OnPong([8]byte(p))
		return nil
	}
	s.out = appendFrameHeader(s.out, 8, framePing, flagAck, 0)
	s.out = append(s.out, p...)
	return nil
}

func (s *Session) goAway(p []byte, ev Events) error {
	if len(p) < 8 {
		return connFault(FrameSizeError, "GOAWAY is shorter than 8 bytes")
	}
	if err := s.charge("GOAWAY frames"); err != nil {
		return err
	}
	last, code := binary.BigEndian.Uint32(p)&maxStreamID, ErrCode(binary.BigEndian.Uint32(p[4:]))
	s.goneAway = true
	ev.OnGoAway(last, code, printable(p[8:]))
	if !s.cfg.Server {
		for _, st := range s.streams {
			if st.ID > last {
				s.remove(st)
				ev.OnReset(st, RefusedStream, "")
			}
		}
	}
	return nil
}

// printable keeps a peer's text fit for a log line.
func printable(p []byte) string {
	if len(p) > 200 {
		p = p[:200]
	}
	out := make([]byte, len(p))
	for i, c := range p {
		if c < 0x20 || c > 0x7e {
			c = '?'
		}
		out[i] = c
	}
	return string(out)
}

func (s *Session) rstStream(f frameHeader, p []byte, ev Events) error {
	if len(p) != 4 {
		return connFault(FrameSizeError, "RST_STREAM is not 4 bytes")
	}
	st := s.streams[f.stream]
	if st == nil {
		if err := s.closedOrIdle(f.stream, "RST_STREAM"); err != nil {
			return err
		}
		return s.charge("RST_STREAM frames on closed streams")
	}
	if s.cfg.Server && !st.answered && s.Now-st.grantedAt < patience {
		// A reset before the answer is what a rapid-reset attack (CVE-2023-44487) is made of.
		if err := s.chargeFor(int64(st.price), "early RST_STREAM frames"); err != nil {
			return err
		}
	}
	s.remove(st)
	ev.OnReset(st, ErrCode(binary.BigEndian.Uint32(p)), "")
	return nil
}
