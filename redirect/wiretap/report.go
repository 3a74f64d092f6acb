package wiretap

import (
	"bytes"
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Report is what was seen.
type Report struct {
	Flows []Flow // ordered by server, then client
	// Packets counts all packets, Other those that are neither TCP nor UDP (ARP, ICMP, fragments).
	Packets, Other uint64
	// Unfollowed counts packets of flows beyond MaxFlows; Dropped those that the kernel had no room for. While either
	// is not zero, that something was not seen is no proof that it was not there.
	Unfollowed, Dropped uint64
	// Found says for each needle of Config whether it was seen anywhere.
	Found []bool
}

// Flow is one TCP connection, or the datagrams between two UDP addresses.
type Flow struct {
	Protocol string         // "tcp" or "udp"
	Client   netip.AddrPort // who sent the SYN, or the first packet seen
	Server   netip.AddrPort
	// ToServer and ToClient are the two directions.
	ToServer, ToClient Direction
}

// Direction is what one side sent.
type Direction struct {
	Packets, Bytes uint64 // Bytes is payload, each byte of a stream counted once
	Kind           Kind   // of TCP; datagrams are Plain
	// Handshake, ApplicationData and OtherRecords count TLS records by their outer content type.
	Handshake, ApplicationData, OtherRecords uint64
	Gaps                                     uint64 // places where bytes were not seen
	Sample                                   []byte // first bytes, at most 64
	Found                                    []int  // indexes of needles
}

// Encrypted reports whether the flow is TLS in both directions, from its first byte on, with application data.
func (f Flow) Encrypted() bool {
	ok := func(d Direction) bool { return d.Kind == TLS }
	return ok(f.ToServer) && ok(f.ToClient) && f.ToServer.ApplicationData+f.ToClient.ApplicationData > 0
}

// Bytes is the payload of both directions.
func (f Flow) Bytes() uint64 { return f.ToServer.Bytes + f.ToClient.Bytes }

func (f Flow) String() string {
	return fmt.Sprintf("%s %s -> %s: %s, %d bytes", f.Protocol, f.Client, f.Server, f.describe(), f.Bytes())
}

func (f Flow) describe() string {
	if f.ToServer.Kind == f.ToClient.Kind {
		return f.ToServer.Kind.String()
	}
	return f.ToServer.Kind.String() + "/" + f.ToClient.Kind.String()
}

// With returns the flows in which needle i was found, in either direction.
func (r Report) With(i int) []Flow {
	var flows []Flow
	for _, f := range r.Flows {
		if slices.Contains(f.ToServer.Found, i) || slices.Contains(f.ToClient.Found, i) {
			flows = append(flows, f)
		}
	}
	return flows
}

// Unencrypted returns the flows with payload that are not TLS throughout to the given server port: what a network that
// carries nothing but encrypted tunnels does not have.
func (r Report) Unencrypted(port uint16) []Flow {
	var flows []Flow
	for _, f := range r.Flows {
		if f.Bytes() > 0 && (f.Server.Port() != port || !f.Encrypted()) {
			flows = append(flows, f)
		}
	}
	return flows
}

// Complete reports whether nothing escaped the tap.
func (r Report) Complete() bool {
	gaps := uint64(0)
	for _, f := range r.Flows {
		gaps += f.ToServer.Gaps + f.ToClient.Gaps
	}
	return gaps+r.Unfollowed+r.Dropped == 0
}

func (r Report) String() string {
	var b strings.Builder
	for _, f := range r.Flows {
		fmt.Fprintln(&b, f)
	}
	fmt.Fprintf(&b, "%d packets, %d of them neither TCP nor UDP, %d not followed, %d dropped\n", r.Packets, r.Other, r.Unfollowed, r.Dropped)
	return b.String()
}

// key names a flow whichever way a packet goes: the smaller address first.
type key struct {
	proto uint8
	a, b  netip.AddrPort
}

// flow is a flow under observation.
type flow struct {
	proto              uint8
	client, server     netip.AddrPort
	toServer, toClient stream
}

// book keeps all flows. It is not safe for concurrent use.
type book struct {
	needles  [][]byte
	maxFlows int
	flows    map[key]*flow
	totals   Report
	found    uint64
}

func newBook(needles [][]byte, maxFlows int) *book {
	own := make([][]byte, len(needles))
	for i, n := range needles {
		own[i] = bytes.Clone(n)
	}
	return &book{needles: own, maxFlows: maxFlows, flows: make(map[key]*flow)}
}

// packet takes one packet that begins with its IP header.
func (k *book) packet(b []byte) {
	k.totals.Packets++
	s, ok := parse(b)
	if !ok {
		k.totals.Other++
		return
	}
	f := k.flow(s)
	if f == nil {
		k.totals.Unfollowed++
		for i, needle := range k.needles {
			if bytes.Contains(s.payload, needle) {
				k.found |= 1 << i
			}
		}
		return
	}
	direction := &f.toServer
	if s.src != f.client {
		direction = &f.toClient
	}
	direction.packets++
	switch {
	case s.proto == protoUDP:
		direction.tail = nil // datagrams do not continue one another
		direction.kind = Plain
		direction.take(s.payload, k.needles)
	case s.syn:
		direction.begin(s.seq)
		direction.segment(s.seq+1, s.payload, k.needles)
	default:
		direction.segment(s.seq, s.payload, k.needles)
	}
	k.found |= direction.found
}

// flow finds or opens the packet's flow; nil when there are too many.
func (k *book) flow(s segment) *flow {
	id := key{s.proto, s.src, s.dst}
	if id.b.Compare(id.a) < 0 {
		id.a, id.b = id.b, id.a
	}
	f := k.flows[id]
	opening := s.syn && !s.ack
	switch {
	case f == nil && len(k.flows) >= k.maxFlows:
		return nil
	case f == nil:
		f = &flow{proto: s.proto, client: s.src, server: s.dst}
		if s.syn && s.ack {
			f.client, f.server = s.dst, s.src
		}
		k.flows[id] = f
	case opening && f.client != s.src: // the first packet seen was an answer of an older connection
		f.client, f.server = s.src, s.dst
		f.toServer, f.toClient = f.toClient, f.toServer
	}
	return f
}

func (k *book) report() Report {
	r := k.totals
	r.Found = make([]bool, len(k.needles))
	for i := range r.Found {
		r.Found[i] = k.found&(1<<i) != 0
	}
	for _, f := range k.flows {
		protocol := "tcp"
		if f.proto == protoUDP {
			protocol = "udp"
		}
		r.Flows = append(r.Flows, Flow{
			Protocol: protocol, Client: f.client, Server: f.server,
			ToServer: f.toServer.direction(), ToClient: f.toClient.direction(),
		})
	}
	slices.SortFunc(r.Flows, func(a, b Flow) int {
		return cmp.Or(a.Server.Compare(b.Server), a.Client.Compare(b.Client), cmp.Compare(a.Protocol, b.Protocol))
	})
	return r
}

func (s *stream) direction() Direction {
	d := Direction{
		Packets: s.packets, Bytes: s.bytes, Kind: s.kind, Gaps: s.gaps, Sample: bytes.Clone(s.sample),
		Handshake: s.records[2], ApplicationData: s.records[3], OtherRecords: s.records[0] + s.records[1],
	}
	for i := range 64 {
		if s.found&(1<<i) != 0 {
			d.Found = append(d.Found, i)
		}
	}
	return d
}
