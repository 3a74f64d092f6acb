package lookup

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// tries is how often each server is asked.
	tries = 2
	// maxAliases bounds a chain of CNAMEs.
	maxAliases = 16
	// payload is the size of answers over UDP that is offered (DNS flag day
	// 2020): larger ones come over TCP.
	payload = 1232
)

// part is the answer for one family.
type part struct {
	addrs []netip.Addr
	ttl   time.Duration
	err   error
}

// ask asks for both families. An answer for one of them is enough; the other is
// asked for again soon when it failed.
func (r *Resolver) ask(ctx context.Context, name string) ([]netip.Addr, time.Duration, error) {
	fqdn := dns.Fqdn(name)
	if _, ok := dns.IsDomainName(fqdn); !ok || name == "" || strings.ContainsAny(name, `*\`) {
		return nil, 0, fmt.Errorf("%w: it is no host name", ErrNotFound)
	}
	var v4, v6 part
	var both sync.WaitGroup
	both.Go(func() { v4 = r.family(ctx, fqdn, dns.TypeA) })
	both.Go(func() { v6 = r.family(ctx, fqdn, dns.TypeAAAA) })
	both.Wait()
	switch {
	case v4.err == nil && v6.err == nil:
		return append(v4.addrs, v6.addrs...), min(v4.ttl, v6.ttl), nil
	case v4.err == nil:
		return v4.addrs, v4.soon(v6.err), nil
	case v6.err == nil:
		return v6.addrs, v6.soon(v4.err), nil
	case errors.Is(v4.err, ErrNotFound) && errors.Is(v6.err, ErrNotFound):
		return nil, 0, ErrNotFound
	case errors.Is(v4.err, ErrNotFound):
		return nil, 0, v6.err
	default:
		return nil, 0, v4.err
	}
}

// soon shortens the life of an answer whose other family is not known.
func (p part) soon(other error) time.Duration {
	if errors.Is(other, ErrNotFound) {
		return p.ttl
	}
	return min(p.ttl, denied)
}

// family asks one server after the other for the records of a type.
func (r *Resolver) family(ctx context.Context, fqdn string, qtype uint16) part {
	servers := r.cfg.Nameservers()
	if len(servers) == 0 {
		return part{err: errors.New("no name server is known")}
	}
	share := r.cfg.Timeout / time.Duration(tries*len(servers))
	var last error
	for range tries {
		for _, server := range servers {
			m, err := r.exchange(ctx, server, fqdn, qtype, share)
			if err == nil && m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
				err = errors.New(strings.ToLower(dns.RcodeToString[m.Rcode]))
			}
			if err == nil {
				return collect(m, fqdn, qtype)
			}
			last = fmt.Errorf("ask %s: %w", server, err)
			if ctx.Err() != nil {
				return part{err: last}
			}
		}
	}
	return part{err: last}
}

// exchange asks one server, over TCP too when the answer is too long.
func (r *Resolver) exchange(ctx context.Context, server netip.AddrPort, fqdn string, qtype uint16, limit time.Duration) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	m, err := r.over(ctx, "udp", server, fqdn, qtype)
	if err == nil && m.Truncated {
		m, err = r.over(ctx, "tcp", server, fqdn, qtype)
	}
	return m, err
}

func (r *Resolver) over(ctx context.Context, network string, server netip.AddrPort, fqdn string, qtype uint16) (*dns.Msg, error) {
	c, err := r.cfg.Dial(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	q := new(dns.Msg)
	q.SetQuestion(fqdn, qtype)
	q.SetEdns0(payload, false)
	client := &dns.Client{Net: network, Timeout: r.cfg.Timeout, UDPSize: payload}
	m, _, err := client.ExchangeWithConnContext(ctx, q, &dns.Conn{Conn: c, UDPSize: payload})
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		// The connection's deadline is the context's, and may pass first.
		return nil, context.DeadlineExceeded
	case err != nil && ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil:
		return nil, err
	case !m.Response || len(m.Question) != 1 || m.Question[0].Qtype != qtype || !strings.EqualFold(m.Question[0].Name, fqdn):
		return nil, errors.New("answer is for another question")
	}
	return m, nil
}

// collect reads the addresses of the name from an answer, along its aliases.
// Records of other names count for nothing.
func collect(m *dns.Msg, fqdn string, qtype uint16) part {
	p := part{ttl: most}
	name := fqdn
	for range maxAliases {
		alias := ""
		for _, rr := range m.Answer {
			if !strings.EqualFold(rr.Header().Name, name) {
				continue
			}
			a, ok := address(rr, qtype)
			if ok {
				p.addrs = append(p.addrs, a)
			} else if c, is := rr.(*dns.CNAME); is && alias == "" {
				alias = c.Target
			} else {
				continue
			}
			p.ttl = min(p.ttl, time.Duration(rr.Header().Ttl)*time.Second)
		}
		if len(p.addrs) > 0 || alias == "" {
			break
		}
		name = alias
	}
	if len(p.addrs) == 0 {
		return part{err: ErrNotFound}
	}
	return p
}

// address returns the address of a record of the type, if it is one that can
// be connected to.
func address(rr dns.RR, qtype uint16) (netip.Addr, bool) {
	var a netip.Addr
	var ok bool
	switch rr := rr.(type) {
	case *dns.A:
		a, ok = netip.AddrFromSlice(rr.A)
	case *dns.AAAA:
		a, ok = netip.AddrFromSlice(rr.AAAA)
	}
	a = a.Unmap()
	return a, ok && rr.Header().Rrtype == qtype && !a.IsUnspecified() && !a.IsMulticast()
}
