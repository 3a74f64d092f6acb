package netlab_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/miekg/dns"

	"github.com/culvert-mesh/culvert/e2e/netlab"
)

// startResolver runs an ordinary DNS server in a pod that knows one name.
func (m *mesh) startResolver(p *netlab.Pod) netip.AddrPort {
	m.t.Helper()
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		a := new(dns.Msg)
		a.SetReply(q)
		if name := q.Question[0].Name; name == "outside.example.com." && q.Question[0].Qtype == dns.TypeA {
			a.Answer = append(a.Answer, &dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.IPv4(192, 0, 2, 7)})
		} else if name != "outside.example.com." {
			a.Rcode = dns.RcodeNameError
		}
		_ = w.WriteMsg(a)
	})
	addr := netip.AddrPortFrom(p.Addr(), 53)
	pc, err := p.ListenPacket(context.Background(), addr.String())
	if err != nil {
		m.t.Fatal(err)
	}
	l, err := p.Listen(context.Background(), addr.String())
	if err != nil {
		m.t.Fatal(err)
	}
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: handler}, {Listener: l, Handler: handler}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		ended := make(chan struct{})
		go func() { defer close(ended); _ = s.ActivateAndServe() }()
		<-started
		m.t.Cleanup(func() { _ = s.Shutdown(); <-ended })
	}
	return addr
}

// resolverIn is a stub resolver in a pod that asks the given server.
func (m *mesh) resolverIn(p *netlab.Pod, server netip.AddrPort) *net.Resolver {
	return &net.Resolver{PreferGo: true, StrictErrors: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, 8*time.Second)
		defer cancel()
		return p.Dial(ctx, network, server.String())
	}}
}

func isNotFound(err error) bool {
	var de *net.DNSError
	return errors.As(err, &de) && de.IsNotFound
}
