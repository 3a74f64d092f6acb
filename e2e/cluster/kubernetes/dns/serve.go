package main

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const ttl = 5

func serveUDP(conn net.PacketConn, r *records) error {
	buf := make([]byte, 4096)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return err
		}
		if reply := respond(r, buf[:n], 1232); reply != nil {
			_, _ = conn.WriteTo(reply, from) // the client asks again
		}
	}
}

func serveTCP(listener net.Listener, r *records) error {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go serveConn(conn, r)
	}
}

func serveConn(conn net.Conn, r *records) {
	defer func() { _ = conn.Close() }()
	for {
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		var size [2]byte
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			return
		}
		query := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(conn, query); err != nil {
			return
		}
		reply := respond(r, query, 65535)
		if reply == nil {
			return
		}
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...)); err != nil {
			return
		}
	}
}

// respond answers one query; nil when it is not one.
func respond(r *records, query []byte, limit int) []byte {
	var p dnsmessage.Parser
	header, err := p.Start(query)
	if err != nil || header.Response {
		return nil
	}
	question, err := p.Question()
	if err != nil {
		return nil
	}
	reply := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: header.ID, Response: true, Authoritative: true, RecursionDesired: header.RecursionDesired, RecursionAvailable: true},
		Questions: []dnsmessage.Question{question},
	}
	fill(r, &reply, question)
	packed, err := reply.Pack()
	if err != nil {
		return nil
	}
	if len(packed) > limit {
		reply.Answers, reply.Truncated = nil, true
		if packed, err = reply.Pack(); err != nil {
			return nil
		}
	}
	return packed
}

func fill(r *records, reply *dnsmessage.Message, q dnsmessage.Question) {
	found := r.lookup(strings.TrimSuffix(q.Name.String(), "."))
	if !found.known {
		reply.RCode = dnsmessage.RCodeNameError
		return
	}
	owner := q.Name
	if found.canonical != "" {
		target, err := dnsmessage.NewName(found.canonical)
		if err != nil {
			reply.RCode = dnsmessage.RCodeServerFailure
			return
		}
		reply.Answers = append(reply.Answers, resource(owner, dnsmessage.TypeCNAME, &dnsmessage.CNAMEResource{CNAME: target}))
		owner, found.addrs = target, r.lookup(strings.TrimSuffix(found.canonical, ".")).addrs
	}
	for _, addr := range found.addrs {
		if body, kind := address(addr); kind == q.Type {
			reply.Answers = append(reply.Answers, resource(owner, kind, body))
		}
	}
}

func address(addr netip.Addr) (dnsmessage.ResourceBody, dnsmessage.Type) {
	if addr.Is4() {
		return &dnsmessage.AResource{A: addr.As4()}, dnsmessage.TypeA
	}
	return &dnsmessage.AAAAResource{AAAA: addr.As16()}, dnsmessage.TypeAAAA
}

func resource(owner dnsmessage.Name, kind dnsmessage.Type, body dnsmessage.ResourceBody) dnsmessage.Resource {
	return dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: owner, Type: kind, Class: dnsmessage.ClassINET, TTL: ttl}, Body: body}
}
