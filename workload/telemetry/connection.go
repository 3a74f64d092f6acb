package telemetry

import (
	"net/netip"
	"time"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/workload"
)

// Direction says which end of a connection reports it.
type Direction uint8

// Outbound: the agent of the source ("reporter" is source). Inbound: the agent of
// the destination.
const (
	Outbound Direction = iota
	Inbound
)

// String returns the word used in the access log.
func (d Direction) String() string {
	if d == Inbound {
		return "inbound"
	}
	return "outbound"
}

// reporter returns the word used in metrics.
func (d Direction) reporter() string {
	if d == Inbound {
		return "destination"
	}
	return "source"
}

// Security is how a connection is protected on its way.
type Security uint8

// SameNode is a connection inside one agent whose two ends were checked as a
// handshake would have.
const (
	Unprotected Security = iota
	MutualTLS
	SameNode
)

// String returns the value of connection_security_policy.
func (s Security) String() string {
	switch s {
	case MutualTLS:
		return "mutual_tls"
	case SameNode:
		return "same_node"
	default:
		return unknown
	}
}

// Flag is why a connection failed: the value of response_flags.
type Flag uint8

// None is a connection that did not fail.
const (
	None Flag = iota
	Denied
	ConnectFailure
	TLSFailure
	HTTP2Failure
	NetworkPolicy
	IdentityError
	Revoked
	numFlags
)

// String returns the label's value.
func (f Flag) String() string {
	if f >= numFlags {
		f = ConnectFailure
	}
	return [numFlags]string{
		"-", "DENY", "CONNECT", "TLS_FAILURE", "H2_HANDSHAKE_FAILURE", "NETWORK_POLICY", "IDENTITY_ERROR", "CERT_REVOKED",
	}[f]
}

// Peer is one end of a connection as far as it is known.
type Peer struct {
	Addr netip.AddrPort
	// Workload is nil when discovery does not know the address.
	Workload *workload.Workload
	// Baggage is what the peer said about itself; it counts only where Workload is
	// nil, because anybody may claim anything. Nil when it said nothing.
	Baggage *workload.Baggage
	// ID is the identity that was proven: of a source, the client certificate's or
	// (outbound) our own when mTLS is used. For a destination the zero value means
	// the identity of Workload.
	ID identity.ID
}

// ByteCounter reads the bytes of a connection while it lives. It is called at any
// time between Opened and Closed, from any goroutine, and must be cheap and must
// never decrease.
type ByteCounter interface {
	// Bytes returns the bytes from client to server (received) and from server to
	// client (sent), for either Direction.
	Bytes() (received, sent uint64)
}

// Connection is one application connection. The caller fills it in, calls Opened
// once, sets Flag and Error, calls Closed once, and does not change it afterwards.
type Connection struct {
	Direction   Direction
	Security    Security
	Source      Peer
	Destination Peer
	// HBONE is the authority of the CONNECT request; empty without a tunnel.
	HBONE string
	// Service is the service that the client addressed; nil for a workload.
	Service *workload.Service
	Start   time.Time
	// Bytes may be nil for a connection that never moved any.
	Bytes ByteCounter

	// Matches are the policies that matched without deciding, set before
	// PolicyMatched and Closed; usually none.
	Matches []PolicyMatch

	// Flag and Error are the outcome, set before Closed. Error is the text of the
	// log line; empty with Flag None is a normal end.
	Flag  Flag
	Error string

	series     *series
	prev, next *Connection // in the list of its shard
	shard      uint8
	closed     bool
	// What Closed found, or the last scrape before it.
	received, sent uint64
}

// Opened counts a connection and makes its bytes visible. It is called when the
// labels are known, before policy and before the upstream is connected.
func (t *Telemetry) Opened(c *Connection) {
	c.series = t.series.open(c)
	c.series.opened.Add(1)
	if c.series.origin == beyond {
		t.overflowed.Add(1)
	}
	t.open[c.Direction&1].Add(1)
	t.live.add(c)
	if t.log != nil {
		t.log.opened(c)
	}
}

// Closed counts the end of a connection and logs it. A connection that was not
// reported as opened is counted as both.
func (t *Telemetry) Closed(c *Connection) {
	if c.closed {
		return
	}
	if c.series == nil {
		t.Opened(c)
	}
	c.closed = true
	t.live.remove(c)
	t.open[c.Direction&1].Add(-1)
	// As in the reference, the flag is a label: a failed connection's end is in
	// another series than its beginning.
	s := t.series.flagged(c.series, c.Flag)
	s.closed.Add(1)
	if c.Flag != None {
		s.failed.Add(1)
	}
	t.series.close(c.series)
	if t.log != nil {
		t.log.closed(c)
	}
}

// Refused logs a connection that was refused before its ends were known. It
// touches no traffic metric. Only addresses, Source.Workload, Direction and Error
// are read.
func (t *Telemetry) Refused(c *Connection) {
	if t.log != nil {
		t.log.refused(c)
	}
}
