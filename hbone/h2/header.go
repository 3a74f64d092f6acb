package h2

import (
	"strconv"
	"strings"

	"golang.org/x/net/http2/hpack"
)

// Field is one header field; names are lower case.
type Field struct{ Name, Value string }

// Header is a request (Method set) or a response (Status set).
type Header struct {
	Method    string
	Authority string
	Scheme    string
	Path      string
	Status    int
	Fields    []Field
}

// Get returns the first value of a field, "" when it is absent.
func (h *Header) Get(name string) string {
	for i := range h.Fields {
		if h.Fields[i].Name == name {
			return h.Fields[i].Value
		}
	}
	return ""
}

// Values returns all values of a field in order.
func (h *Header) Values(name string) []string {
	var out []string
	for i := range h.Fields {
		if h.Fields[i].Name == name {
			out = append(out, h.Fields[i].Value)
		}
	}
	return out
}

// Indexes into the static table (RFC 7541 appendix A) that the encoder uses.
const (
	staticAuthority = 1
	staticMethod    = 2
	staticStatus    = 8
	staticStatus200 = 8
	staticStatus400 = 12
)

// tableSizeZero is a dynamic table size update to 0 (RFC 7541 section 6.3).
const tableSizeZero = 0x20

// appendRequest encodes a CONNECT request. Nothing is ever added to the dynamic table (RFC 7541 section 6.2.2), so the
// encoder has no state.
func appendRequest(b []byte, h *Header) []byte {
	b = appendIndexedName(b, staticMethod, h.Method)
	b = appendIndexedName(b, staticAuthority, h.Authority)
	if h.Scheme != "" {
		b = appendLiteral(b, ":scheme", h.Scheme)
	}
	if h.Path != "" {
		b = appendLiteral(b, ":path", h.Path)
	}
	return appendFields(b, h.Fields)
}

func appendResponse(b []byte, status int, fields []Field) []byte {
	switch status {
	case 200:
		b = append(b, 0x80|staticStatus200)
	case 400:
		b = append(b, 0x80|staticStatus400)
	default:
		b = appendIndexedName(b, staticStatus, strconv.Itoa(status))
	}
	return appendFields(b, fields)
}

func appendFields(b []byte, fields []Field) []byte {
	for _, f := range fields {
		b = appendLiteral(b, f.Name, f.Value)
	}
	return b
}

func appendIndexedName(b []byte, index int, value string) []byte {
	return appendString(hpackInt(b, 0x00, 4, uint64(index)), value)
}

func appendLiteral(b []byte, name, value string) []byte {
	return appendString(appendString(append(b, 0), name), value)
}

func appendString(b []byte, s string) []byte {
	return append(hpackInt(b, 0x00, 7, uint64(len(s))), s...)
}

// hpackInt is the integer representation of RFC 7541 section 5.1.
func hpackInt(b []byte, first byte, prefix uint, n uint64) []byte {
	limit := uint64(1)<<prefix - 1
	if n < limit {
		return append(b, first|byte(n))
	}
	b = append(b, first|byte(limit))
	for n -= limit; n >= 0x80; n >>= 7 {
		b = append(b, byte(n)|0x80)
	}
	return append(b, byte(n))
}

// blockReader turns one header block into a Header. A malformed message (RFC 9113 section 8.1.1) is remembered and the
// rest is decoded all the same, since the HPACK state has to follow.
type blockReader struct {
	dec       *hpack.Decoder
	head      *Header
	size      uint32
	maxSize   uint32
	sawField  bool
	seen      uint8
	malformed string
	tooLarge  bool
	total     uint64 // sum of size
	price     int64  // of the block that was read last, when it comes to nothing: see chargeFor
}

// bombFactor is how far beyond the limit a header list has to be to end the connection.
const bombFactor = 4

const (
	sawMethod = 1 << iota
	sawAuthority
	sawScheme
	sawPath
	sawStatus
)

func (r *blockReader) init(maxSize uint32) {
	r.maxSize = maxSize
	r.dec = hpack.NewDecoder(defaultTable, r.field)
	r.dec.SetMaxStringLength(int(maxSize))
}

// read decodes a complete block. The error is a connection error (RFC 9113 section 4.3).
func (r *blockReader) read(block []byte) (*Header, error) {
	r.head, r.size, r.sawField, r.seen, r.malformed, r.tooLarge = &Header{}, 0, false, 0, "", false
	if _, err := r.dec.Write(block); err != nil {
		return nil, connFault(CompressionError, err.Error())
	}
	r.total += uint64(r.size)
	if err := r.dec.Close(); err != nil {
		return nil, connFault(CompressionError, err.Error())
	}
	// A block of a few bytes may stand for megabytes (CVE-2016-1544). A list that is a little too large is refused alone,
	// so far beyond what was announced it is no mistake, and takes too much time to happen again.
	if r.size > bombFactor*r.maxSize {
		return nil, connFault(EnhanceYourCalm, "header list is too large")
	}
	return r.head, nil
}

func (r *blockReader) field(f hpack.HeaderField) {
	if r.size = min(r.size+f.Size(), 1<<30); r.size > r.maxSize {
		r.tooLarge = true
		return
	}
	if strings.HasPrefix(f.Name, ":") {
		r.pseudo(f.Name, f.Value)
		return
	}
	r.sawField = true
	switch f.Name {
	case "", "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		r.malformed = "field " + strconv.Quote(f.Name) + " is not allowed"
		return
	}
	if !validName(f.Name) || !validValue(f.Value) {
		r.malformed = "field has invalid characters"
		return
	}
	if f.Name == "te" && f.Value != "trailers" {
		r.malformed = "field \"te\" other than trailers"
		return
	}
	r.head.Fields = append(r.head.Fields, Field{f.Name, f.Value})
}

func (r *blockReader) pseudo(name, value string) {
	var bit uint8
	switch name {
	case ":method":
		bit, r.head.Method = sawMethod, value
	case ":authority":
		bit, r.head.Authority = sawAuthority, value
	case ":scheme":
		bit, r.head.Scheme = sawScheme, value
	case ":path":
		bit, r.head.Path = sawPath, value
	case ":status":
		bit = sawStatus
		n, err := strconv.Atoi(value)
		if err != nil || n < 100 || n > 999 || len(value) != 3 {
			r.malformed = "invalid :status"
		}
		r.head.Status = n
	default:
		r.malformed = "unknown pseudo-header field"
		return
	}
	switch {
	case r.sawField:
		r.malformed = "pseudo-header field behind a regular field"
	case r.seen&bit != 0:
		r.malformed = "repeated pseudo-header field " + name
	case !validValue(value):
		r.malformed = "pseudo-header field has invalid characters"
	}
	r.seen |= bit
}

// check applies RFC 9113 sections 8.3 and 8.5 to a decoded message and returns what is wrong with it.
func (r *blockReader) check(request, trailers bool) string {
	switch {
	case r.tooLarge:
		return "header list is too large"
	case r.malformed != "":
		return r.malformed
	case trailers:
		if r.seen != 0 {
			return "pseudo-header field in trailers"
		}
		return ""
	case request && r.seen&sawStatus != 0, !request && r.seen != sawStatus:
		return "wrong pseudo-header fields"
	case !request:
		return ""
	case r.seen&sawMethod == 0:
		return "no :method"
	case r.head.Method == "CONNECT" && r.seen&(sawScheme|sawPath) != 0:
		return "CONNECT with :scheme or :path"
	case r.head.Method != "CONNECT" && r.seen&(sawScheme|sawPath) != sawScheme|sawPath:
		return "request without :scheme or :path"
	}
	return ""
}

func validName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c <= 0x20 || c >= 0x7f || ('A' <= c && c <= 'Z') || c == ':' {
			return false
		}
	}
	return true
}

func validValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c == 0 || c == '\r' || c == '\n' {
			return false
		}
	}
	return len(s) == 0 || (s[0] != ' ' && s[0] != '\t' && s[len(s)-1] != ' ' && s[len(s)-1] != '\t')
}
