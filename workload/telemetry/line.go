package telemetry

import (
	"encoding/json"
	"log/slog"
	"net/netip"
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"
)

// line makes one access-log line, in the form of slog's text or JSON handler
// (which would take several times as long; a test compares the two).
type line struct {
	buf  []byte
	json bool
}

// failed reports whether the connection ended other than normally.
func (c *Connection) failed() bool { return c.Flag != None || c.Error != "" }

// connection writes the fields of a whole connection, in the reference's order.
// What is unknown is left out; identities are there when they were proven.
func (l *line) connection(e entry) {
	c := e.connection
	s := &c.series.labels
	if c.series.origin == beyond {
		own := labelsOf(c)
		s = &own
	}
	proven := c.Security != Unprotected
	l.addr("src.addr", c.Source.Addr)
	l.text("src.workload", name(c.Source, s[lSource+lCanonicalService]))
	l.known("src.namespace", s[lSource+lNamespace])
	l.identity("src.identity", s[lSource+lPrincipal], proven)
	l.known("src.cluster", s[lSource+lCluster])
	l.addr("dst.addr", c.Destination.Addr)
	l.text("dst.hbone_addr", c.HBONE)
	l.known("dst.service", s[lService])
	l.text("dst.workload", name(c.Destination, s[lDestination+lCanonicalService]))
	l.known("dst.namespace", s[lDestination+lNamespace])
	l.identity("dst.identity", s[lDestination+lPrincipal], proven)
	l.known("dst.cluster", s[lDestination+lCluster])
	l.text("direction", c.Direction.String())
	if e.level == slog.LevelDebug {
		return
	}
	// The source's point of view is the log's: it sent what was received.
	sent, received := c.sent, c.received
	if c.Direction == Outbound {
		sent, received = received, sent
	}
	l.number("bytes_sent", sent)
	l.number("bytes_recv", received)
	l.text("duration", strconv.FormatInt(e.at.Sub(c.Start).Milliseconds(), 10)+"ms")
	l.text("policy.dry_run", matched(c.Matches, true))
	l.text("policy.audit", matched(c.Matches, false))
	if c.failed() {
		l.text("error", c.reason())
	}
}

// refusal writes the fields of a connection that was refused early.
func (l *line) refusal(c *Connection) {
	l.addr("src.addr", c.Source.Addr)
	if w := c.Source.Workload; w != nil { // ours, when we refuse it its way out
		l.text("src.workload", name(c.Source, w.CanonicalName))
		l.text("src.namespace", w.Namespace)
	}
	l.addr("dst.addr", c.Destination.Addr)
	l.text("direction", c.Direction.String())
	l.text("error", c.reason())
}

// reason is the text of the error field.
func (c *Connection) reason() string {
	if c.Error != "" {
		return c.Error
	}
	return c.Flag.String()
}

// begin writes what every line begins with.
func (l *line) begin(at time.Time, level slog.Level, message string) {
	if l.json {
		l.buf = append(l.buf, `{"time":"`...)
		l.buf = at.AppendFormat(l.buf, time.RFC3339Nano)
		l.buf = append(l.buf, '"')
	} else {
		l.buf = append(l.buf, "time="...)
		l.buf = at.AppendFormat(l.buf, "2006-01-02T15:04:05.000Z07:00")
	}
	l.text("level", level.String())
	l.text("msg", message)
	l.text("scope", "access")
}

// end finishes the line and returns the buffer.
func (l *line) end() []byte {
	if l.json {
		l.buf = append(l.buf, '}')
	}
	return append(l.buf, '\n')
}

// key writes the name of a field; names need no quoting.
func (l *line) key(name string) {
	if l.json {
		l.buf = append(l.buf, `,"`...)
		l.buf = append(l.buf, name...)
		l.buf = append(l.buf, `":`...)
		return
	}
	l.buf = append(l.buf, ' ')
	l.buf = append(l.buf, name...)
	l.buf = append(l.buf, '=')
}

// text writes a field unless its value is empty.
func (l *line) text(name, value string) {
	switch {
	case value == "":
	case l.json:
		l.key(name)
		l.buf = appendJSON(l.buf, value)
	default:
		l.key(name)
		if needsQuoting(value) {
			l.buf = strconv.AppendQuote(l.buf, value)
		} else {
			l.buf = append(l.buf, value...)
		}
	}
}

// known writes a label's value unless it stands for nothing.
func (l *line) known(name, value string) {
	if value != unknown {
		l.text(name, value)
	}
}

func (l *line) identity(name, principal string, proven bool) {
	if proven {
		l.known(name, principal)
	}
}

// addr writes an address, which needs no quoting in either form but for the zone
// of a link-local one.
func (l *line) addr(name string, addr netip.AddrPort) {
	switch {
	case !addr.IsValid():
	case addr.Addr().Zone() != "":
		l.text(name, addr.String())
	case l.json:
		l.key(name)
		l.buf = append(l.buf, '"')
		l.buf = addr.AppendTo(l.buf)
		l.buf = append(l.buf, '"')
	default:
		l.key(name)
		l.buf = addr.AppendTo(l.buf)
	}
}

func (l *line) number(name string, n uint64) {
	l.key(name)
	l.buf = strconv.AppendUint(l.buf, n, 10)
}

// name is how the log calls a peer: the pod's name, for want of it the canonical
// service, for a peer known from baggage alone its workload's name.
func name(p Peer, canonical string) string {
	switch {
	case p.Workload != nil && p.Workload.Name != "":
		return p.Workload.Name
	case p.Workload == nil && p.Baggage != nil && p.Baggage.WorkloadName != "":
		return p.Baggage.WorkloadName
	case canonical != unknown:
		return canonical
	}
	return ""
}

// needsQuoting follows slog's text handler: what would not read as one word.
func needsQuoting(s string) bool {
	for i := 0; i < len(s); {
		b := s[i]
		if b < utf8.RuneSelf {
			if b <= ' ' || b == '=' || b == '"' {
				return true
			}
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError || unicode.IsSpace(r) || !unicode.IsPrint(r) {
			return true
		}
		i += n
	}
	return false
}

// appendJSON appends a string as JSON.
func appendJSON(buf []byte, s string) []byte {
	for i := range len(s) {
		if b := s[i]; b < ' ' || b >= utf8.RuneSelf || b == '"' || b == '\\' {
			quoted, err := json.Marshal(s)
			if err != nil { // strings cannot fail
				return append(buf, `""`...)
			}
			return append(buf, quoted...)
		}
	}
	buf = append(buf, '"')
	buf = append(buf, s...)
	return append(buf, '"')
}
