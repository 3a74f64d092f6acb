package hbone

import (
	"fmt"

	"github.com/culvert-mesh/culvert/hbone/h2"
)

// Port is where HBONE servers listen.
const Port = 15008

// Status is the answer to a CONNECT. The four that the protocol uses are named.
type Status int

// The statuses of HBONE (docs/hbone.md).
const (
	StatusOK           Status = 200
	StatusBadRequest   Status = 400 // not CONNECT, or an authority that this server does not serve
	StatusUnauthorized Status = 401 // refused by policy
	StatusUnavailable  Status = 503 // the destination is unknown or cannot be reached
)

// StatusError is a CONNECT that was answered by another status than 200.
type StatusError struct{ Status Status }

// Error implements error.
func (e *StatusError) Error() string { return fmt.Sprintf("http status: %d", e.Status) }

// Request is a CONNECT.
type Request struct {
	// Authority is the destination, "address:port" or "hostname:port". Required.
	Authority string
	// Baggage describes the source workload; optional.
	Baggage string
	// Forwarded names the original source and the service that was addressed; optional.
	Forwarded string
	// Traceparent is the W3C trace context; optional.
	Traceparent string
}

func (r Request) header() *h2.Header {
	h := &h2.Header{Method: "CONNECT", Authority: r.Authority}
	for _, f := range []h2.Field{{Name: "baggage", Value: r.Baggage}, {Name: "forwarded", Value: r.Forwarded}, {Name: "traceparent", Value: r.Traceparent}} {
		if f.Value != "" {
			h.Fields = append(h.Fields, f)
		}
	}
	return h
}

func requestOf(h *h2.Header) Request {
	return Request{Authority: h.Authority, Baggage: h.Get("baggage"), Forwarded: h.Get("forwarded"), Traceparent: h.Get("traceparent")}
}
