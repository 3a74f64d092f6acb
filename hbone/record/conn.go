package record

import (
	"encoding/binary"
	"io"

	"github.com/culvert-mesh/culvert/hbone/aesgcm"
)

// Sizes of the wire format (RFC 8446 section 5.1 and 5.2).
const (
	// HeaderLen is the record header: type, version, length.
	HeaderLen = 5
	// TrailerLen is what sealing adds behind the payload: the inner content type and the AEAD's tag.
	TrailerLen = 1 + aesgcm.TagLen
	// MaxPayload is the largest plaintext of one record.
	MaxPayload = 1 << 14
	// MaxRecord is the largest record that Open accepts, header included.
	MaxRecord = HeaderLen + MaxPayload + 256

	typeAlert       = 21
	typeHandshake   = 22
	typeApplication = 23

	msgNewSessionTicket = 4
	msgKeyUpdate        = 24

	// maxHandshakeMessage bounds the reassembly of a post-handshake message; tickets are the only large ones.
	maxHandshakeMessage = 1 << 16
	// maxNonAdvancing is how many records in a row may carry no application data before the peer is taken for hostile
	// (crypto/tls stops at 16 too).
	maxNonAdvancing = 16
	// updateAfter is when the sending key is renewed: RFC 8446 section 5.5 allows 2^24.5 full records under one AES-GCM key.
	updateAfter = 1 << 23
)

// State is what makes a Conn: it is taken from the handshake, or from another process that held the connection.
type State struct {
	Suite       uint16 // tls.TLS_AES_128_GCM_SHA256 or tls.TLS_AES_256_GCM_SHA384
	ReadSecret  []byte // traffic secret of the peer's direction
	WriteSecret []byte // traffic secret of ours
	ReadSeq     uint64 // sequence number of the next record to open
	WriteSeq    uint64 // sequence number of the next record to seal
}

// Conn is an established TLS 1.3 connection's record state. The zero Conn is unusable; see New.
type Conn struct {
	in, out      half
	handshake    []byte // a post-handshake message that spans records
	updateOwed   bool
	updates      uint64
	nonAdvancing int
}

// New returns the record layer that continues after the handshake which produced s. The secrets are copied.
func New(s State) (*Conn, error) {
	c := &Conn{}
	if err := c.in.init(s.Suite, s.ReadSecret, s.ReadSeq); err != nil {
		return nil, err
	}
	if err := c.out.init(s.Suite, s.WriteSecret, s.WriteSeq); err != nil {
		return nil, err
	}
	return c, nil
}

// State returns a copy of what New needs to go on from here.
func (c *Conn) State() State {
	return State{
		Suite: c.in.suite, ReadSeq: c.in.seq, WriteSeq: c.out.seq,
		ReadSecret: append([]byte(nil), c.in.secret...), WriteSecret: append([]byte(nil), c.out.secret...),
	}
}

// Split returns the length of the record at the start of b, 0 when b does not hold all of it yet, or an *Error when what
// is there cannot be a record of this phase.
func Split(b []byte) (int, error) {
	if len(b) < HeaderLen {
		return 0, nil
	}
	if b[0] != typeApplication {
		return 0, fault(AlertUnexpectedMessage, "record type is not application_data")
	}
	n := int(binary.BigEndian.Uint16(b[3:]))
	if n > MaxRecord-HeaderLen {
		return 0, fault(AlertRecordOverflow, "record is too long")
	}
	if n < TrailerLen {
		return 0, fault(AlertBadRecordMAC, "record is too short")
	}
	if len(b) < HeaderLen+n {
		return 0, nil
	}
	return HeaderLen + n, nil
}

// Open decrypts rec, one whole record as measured by Split, in place. The returned application data aliases rec and is
// empty for records that carry none. io.EOF is the peer's close_notify; every other error is an *Error and final.
func (c *Conn) Open(rec []byte) ([]byte, error) {
	body := rec[HeaderLen:]
	plain, err := c.in.aead.Open(body, c.in.bump(), rec[:HeaderLen])
	if err != nil {
		return nil, fault(AlertBadRecordMAC, "record does not authenticate")
	}
	if len(plain) > MaxPayload+1 { // RFC 8446 section 5.4: padding counts
		return nil, fault(AlertRecordOverflow, "record plaintext is too long")
	}
	end := len(plain) - 1
	for end >= 0 && plain[end] == 0 {
		end--
	}
	if end < 0 {
		return nil, fault(AlertUnexpectedMessage, "record without content type")
	}
	typ, data := plain[end], plain[:end]
	if len(c.handshake) > 0 && typ != typeHandshake { // RFC 8446 section 5.1
		return nil, fault(AlertUnexpectedMessage, "other record inside a handshake message")
	}
	if typ == typeApplication && len(data) > 0 {
		c.nonAdvancing = 0
		return data, nil
	}
	if c.nonAdvancing++; c.nonAdvancing > maxNonAdvancing {
		return nil, fault(AlertUnexpectedMessage, "too many records without application data")
	}
	switch typ {
	case typeApplication:
		return nil, nil
	case typeAlert:
		return nil, c.alert(data)
	case typeHandshake:
		return nil, c.postHandshake(data)
	default:
		return nil, fault(AlertUnexpectedMessage, "unknown inner content type")
	}
}

func (c *Conn) alert(data []byte) error {
	if len(data) != 2 {
		return fault(AlertDecodeError, "alert is not two bytes")
	}
	switch a := Alert(data[1]); a {
	case AlertCloseNotify:
		return io.EOF
	case AlertUserCanceled:
		return nil // RFC 8446 section 6.1: a close_notify follows
	default:
		return &Error{Alert: a, Remote: true}
	}
}

// postHandshake consumes handshake messages after the handshake: tickets are dropped, KeyUpdate renews the opening key.
func (c *Conn) postHandshake(data []byte) error {
	if len(data) == 0 {
		return fault(AlertUnexpectedMessage, "empty handshake record")
	}
	if len(c.handshake)+len(data) > maxHandshakeMessage+MaxPayload {
		return fault(AlertUnexpectedMessage, "handshake message is too long")
	}
	c.handshake = append(c.handshake, data...)
	rest := c.handshake
	for len(rest) >= 4 {
		n := int(rest[1])<<16 | int(rest[2])<<8 | int(rest[3])
		if n > maxHandshakeMessage {
			return fault(AlertUnexpectedMessage, "handshake message is too long")
		}
		if len(rest) < 4+n {
			break
		}
		typ, body := rest[0], rest[4:4+n]
		rest = rest[4+n:]
		switch typ {
		case msgNewSessionTicket:
		case msgKeyUpdate:
			if err := c.keyUpdate(body, len(rest) == 0); err != nil {
				return err
			}
		default:
			return fault(AlertUnexpectedMessage, "handshake message after the handshake")
		}
	}
	if len(rest) == 0 {
		c.handshake = nil
		return nil
	}
	c.handshake = append(c.handshake[:0], rest...)
	return nil
}

// keyUpdate handles RFC 8446 section 4.6.3. The message has to end its record: the next one is under the new key.
func (c *Conn) keyUpdate(body []byte, last bool) error {
	if len(body) != 1 || body[0] > 1 {
		return fault(AlertDecodeError, "malformed KeyUpdate")
	}
	if !last {
		return fault(AlertUnexpectedMessage, "KeyUpdate is not the last message of its record")
	}
	if err := c.in.next(); err != nil {
		return fault(AlertInternalError, err.Error())
	}
	c.updates++
	c.updateOwed = c.updateOwed || body[0] == 1
	return nil
}

// KeyUpdates returns how many times the peer has renewed its key. There is no clock here to say how often it may.
func (c *Conn) KeyUpdates() uint64 { return c.updates }

// Seal encrypts slot[HeaderLen:HeaderLen+n] in place as application data and returns the length of the whole record.
// The slot needs HeaderLen bytes before the payload and TrailerLen behind it; n is 1 to MaxPayload.
func (c *Conn) Seal(slot []byte, n int) int { return c.seal(slot, n, typeApplication) }

func (c *Conn) seal(slot []byte, n int, typ byte) int {
	slot[HeaderLen+n] = typ
	sealed := n + TrailerLen
	slot[0], slot[1], slot[2], slot[3], slot[4] = typeApplication, 3, 3, byte(sealed>>8), byte(sealed)
	c.out.aead.Seal(slot[HeaderLen:HeaderLen+sealed], c.out.bump(), slot[:HeaderLen])
	return HeaderLen + sealed
}

// KeyUpdateDue reports that a KeyUpdate has to be sent before more data: the peer asked for one, or the sending key has
// sealed as many records as it should.
func (c *Conn) KeyUpdateDue() bool { return c.updateOwed || c.out.seq >= updateAfter }

// ControlLen is the room that one record of AppendKeyUpdate or AppendAlert takes.
const ControlLen = HeaderLen + 5 + TrailerLen

// AppendKeyUpdate appends a sealed KeyUpdate record and moves to the next sending key. With request set, the peer is
// asked to renew its key too.
func (c *Conn) AppendKeyUpdate(dst []byte, request bool) ([]byte, error) {
	msg := [5]byte{msgKeyUpdate, 0, 0, 1, 0}
	if request {
		msg[4] = 1
	}
	dst = c.appendControl(dst, typeHandshake, msg[:])
	c.updateOwed = false
	return dst, c.out.next()
}

// AppendAlert appends a sealed alert record; after it nothing else may be sealed.
func (c *Conn) AppendAlert(dst []byte, a Alert) []byte {
	level := byte(2)
	if a == AlertCloseNotify || a == AlertUserCanceled {
		level = 1
	}
	return c.appendControl(dst, typeAlert, []byte{level, byte(a)})
}

func (c *Conn) appendControl(dst []byte, typ byte, body []byte) []byte {
	at := len(dst)
	dst = append(dst, make([]byte, HeaderLen+len(body)+TrailerLen)...)
	copy(dst[at+HeaderLen:], body)
	c.seal(dst[at:], len(body), typ)
	return dst
}
