package proxy

import (
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"net/netip"
	"strings"

	"github.com/culvert-mesh/culvert/hbone/h2"
	"github.com/culvert-mesh/culvert/workload"
)

// Fields of a CONNECT request (reference: HBONE wire protocol).
const (
	fieldBaggage     = "baggage"
	fieldForwarded   = "forwarded"
	fieldTraceparent = "traceparent"
	fieldNetwork     = "x-forwarded-network"
)

// connectHeader builds the request for one connection. client is its address, service what it addressed or nil.
func connectHeader(authority, baggage string, client netip.AddrPort, service *workload.Service) *h2.Header {
	return &h2.Header{Method: "CONNECT", Authority: authority, Fields: []h2.Field{
		{Name: fieldBaggage, Value: baggage},
		{Name: fieldForwarded, Value: forwarded(client, service)},
		{Name: fieldTraceparent, Value: traceparent()},
	}}
}

// forwarded writes the client's address, and the service's host name, in the form of RFC 7239 as ztunnel does.
func forwarded(client netip.AddrPort, service *workload.Service) string {
	b := make([]byte, 0, 96)
	b = append(b, `for="`...)
	b = client.AppendTo(b)
	b = append(b, '"')
	if service != nil {
		b = append(b, ";host="...)
		b = append(b, service.Hostname...)
	}
	return string(b)
}

// forwardedHost reads the service's host name out of the forwarded field; empty when there is none.
func forwardedHost(value string) string {
	for i := range len(value) {
		if value[i] >= 0x80 {
			return ""
		}
	}
	for part := range strings.SplitSeq(value, ";") {
		if host, ok := strings.CutPrefix(part, "host="); ok {
			return strings.Trim(host, `"`)
		}
	}
	return ""
}

// traceparent makes an identifier of the W3C trace context, not sampled. It is for correlating logs and need not be hard
// to guess.
func traceparent() string {
	var ids [24]byte
	binary.BigEndian.PutUint64(ids[0:], rand.Uint64())
	binary.BigEndian.PutUint64(ids[8:], rand.Uint64())
	binary.BigEndian.PutUint64(ids[16:], rand.Uint64())
	b := make([]byte, 0, 55)
	b = append(b, "00-"...)
	b = hex.AppendEncode(b, ids[:16])
	b = append(b, '-')
	b = hex.AppendEncode(b, ids[16:])
	return string(append(b, "-00"...))
}
