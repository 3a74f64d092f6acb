package server

import (
	"context"
	"encoding/binary"
	"log/slog"
	"net/netip"
	"time"

	"github.com/miekg/dns"

	meshdns "github.com/culvert-mesh/culvert/workload/dns"
)

// proto is the transport that the client came by.
type proto string

const (
	protoUDP proto = "udp"
	protoTCP proto = "tcp"
)

// answer works on one message of the client and returns the reply; nil for
// messages that get none. It returns within the server's timeout.
func (s *Server) answer(ctx context.Context, wire []byte, client netip.AddrPort, p proto) []byte {
	if len(wire) < headerLen || isErrorResponse(wire) {
		return nil
	}
	q, rcode, end := parse(wire)
	if q == nil {
		s.cfg.Logger.Debug("refused dns message", "client", client, "proto", p, "result", dns.RcodeToString[rcode])
		return refusal(wire, end, rcode)
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()

	a, err := s.resolve(ctx, q)
	switch {
	case err != nil:
		s.observe(q, p, outcome{result: "unknown client", err: err})
		return q.refuse(p, dns.RcodeServerFailure)
	case a.Outcome != meshdns.Forward:
		s.observe(q, p, outcome{result: a.Reason, endpoints: len(a.Addrs)})
		return q.local(a, p)
	}
	start := time.Now()
	response, err := s.forward(ctx, q, unmap(client), p)
	o := outcome{forwarded: true, result: "forwarded", err: err, took: time.Since(start)}
	if err != nil {
		o.result = "forwarding failed"
		s.observe(q, p, o)
		return q.refuse(p, dns.RcodeServerFailure)
	}
	o.endpoints = int(binary.BigEndian.Uint16(response[6:]))
	s.observe(q, p, o)
	return q.relay(response, p)
}

// resolve asks the store; other classes than IN are not the mesh's.
func (s *Server) resolve(ctx context.Context, q *query) (meshdns.Answer, error) {
	if q.qclass != dns.ClassINET {
		return meshdns.Answer{}, nil
	}
	return s.cfg.Resolver.Resolve(ctx, q.name, q.qtype)
}

// isErrorResponse tells the responses that must not be answered: a response gets
// FORMERR as in the reference, but an error that got an error back would go round
// for ever between two servers (or a server and a packet in its own name).
func isErrorResponse(wire []byte) bool {
	return wire[2]&flagQR != 0 && wire[3]&rcodeMask != 0
}

// outcome is what log and metrics say about a question.
type outcome struct {
	result    string
	endpoints int
	forwarded bool
	took      time.Duration
	err       error
}

func (s *Server) observe(q *query, p proto, o outcome) {
	qtype := dns.Type(q.qtype).String()
	s.cfg.Observer.Query(qtype, string(p), o.forwarded, o.err != nil, o.took)
	ctx := context.Background()
	if !s.cfg.Logger.Enabled(ctx, slog.LevelDebug) {
		return
	}
	attrs := []slog.Attr{
		slog.String("proto", string(p)), slog.String("query", qtype), slog.String("domain", q.name),
		slog.String("result", o.result), slog.Int("endpoints", o.endpoints),
	}
	if o.err != nil {
		attrs = append(attrs, slog.Any("error", o.err))
	}
	s.cfg.Logger.LogAttrs(ctx, slog.LevelDebug, "dns", attrs...)
}
