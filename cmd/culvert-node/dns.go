package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"

	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/origdst"
	"github.com/culvert-mesh/culvert/redirect/podset"
	"github.com/culvert-mesh/culvert/workload"
	dnsserver "github.com/culvert-mesh/culvert/workload/dns/server"
)

const dnsPort = 15053

// dnsService is the DNS server of one pod. A nil one does nothing.
type dnsService struct {
	server    *dnsserver.Server
	conntrack *origdst.Conntrack
	cancel    context.CancelFunc
	done      chan struct{}
	err       error // valid once done is closed
}

// startDNS serves DNS on the pod's loopback addresses; nil when DNS is off.
func (p *pods) startDNS(pod podset.Pod) (*dnsService, error) {
	if p.resolver == nil {
		return nil, nil
	}
	ct, err := origdst.Open(pod.NS)
	if err != nil {
		return nil, fmt.Errorf("open connection tracking: %w", err)
	}
	cfg := dnsserver.Config{
		Resolver: p.resolver.For(p.store, func(ctx context.Context) (*workload.Workload, error) { return p.localWorkload(ctx, pod) }, p.search),
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			to, err := netip.ParseAddrPort(addr)
			if err != nil {
				return nil, err
			}
			return pod.NS.Dial(ctx, network, to, p.mark)
		},
		Nameservers: p.nameservers,
		Observer: p.telemetry.DNS(func() *workload.Workload {
			return p.store.Snapshot().WorkloadByPod(pod.Namespace, pod.Name, pod.ServiceAccount, p.node)
		}),
		Logger: p.log.With("scope", "dns", "pod", pod.String()),
	}
	var tcp []*dnsListener
	for _, addr := range []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()} {
		at := netip.AddrPortFrom(addr, dnsPort)
		l, pc, err := listenDNS(pod.NS, at, p.mark)
		if err != nil && addr.Is6() && (errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL)) {
			continue // the pod has no IPv6
		}
		if err != nil {
			closeDNS(cfg, ct)
			return nil, err
		}
		tcp = append(tcp, l)
		cfg.TCP, cfg.UDP = append(cfg.TCP, l), append(cfg.UDP, pc)
	}
	cfg.OriginalDst = func(client netip.AddrPort, proto string) (netip.AddrPort, bool) {
		if proto == "tcp" {
			return originalTCP(tcp, client)
		}
		return originalUDP(ct, client)
	}
	server, err := dnsserver.New(cfg)
	if err != nil {
		_ = ct.Close()
		return nil, err
	}
	d := &dnsService{server: server, conntrack: ct, done: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	d.cancel = cancel
	go func() {
		defer close(d.done)
		d.err = server.Run(ctx)
	}()
	return d, nil
}

func closeDNS(cfg dnsserver.Config, ct *origdst.Conntrack) {
	for _, l := range cfg.TCP {
		_ = l.Close()
	}
	for _, c := range cfg.UDP {
		_ = c.Close()
	}
	_ = ct.Close()
}

func (d *dnsService) stop(context.Context) {
	if d == nil {
		return
	}
	d.cancel()
	<-d.done
	_ = d.conntrack.Close()
}

// failure says why the server has ended, nil while it runs.
func (d *dnsService) failure() error {
	if d == nil {
		return nil
	}
	select {
	case <-d.done:
		return fmt.Errorf("DNS server has ended: %w", d.err)
	default:
		return nil
	}
}

func listenDNS(ns *netns.NS, at netip.AddrPort, mark netns.Mark) (*dnsListener, net.PacketConn, error) {
	l, err := ns.Listen(at, mark)
	if err != nil {
		return nil, nil, taken(at, err)
	}
	pc, err := ns.ListenPacket(at, mark)
	if err != nil {
		_ = l.Close()
		return nil, nil, taken(at, err)
	}
	return &dnsListener{Listener: l}, pc, nil
}

func taken(at netip.AddrPort, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("port %d is taken in the pod: %w", at.Port(), err)
	}
	return err
}

// dnsListener remembers where each of its connections was going before it was redirected.
type dnsListener struct {
	net.Listener
	dst sync.Map // client's netip.AddrPort → netip.AddrPort
}

// Accept implements net.Listener.
func (l *dnsListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	tc, ok := c.(*net.TCPConn)
	if !ok {
		return c, nil
	}
	client := tc.RemoteAddr().(*net.TCPAddr).AddrPort()
	client = netip.AddrPortFrom(client.Addr().Unmap(), client.Port())
	raw, err := tc.SyscallConn()
	if err != nil {
		return c, nil //nolint:nilerr // the connection is served without knowing its destination
	}
	_ = raw.Control(func(fd uintptr) {
		if dst, err := origdst.TCP(int(fd)); err == nil {
			l.dst.Store(client, dst)
		}
	})
	return &dnsConn{TCPConn: tc, forget: func() { l.dst.Delete(client) }}, nil
}

type dnsConn struct {
	*net.TCPConn
	forget func()
}

// Close implements net.Conn.
func (c *dnsConn) Close() error {
	c.forget()
	return c.TCPConn.Close()
}

func originalTCP(listeners []*dnsListener, client netip.AddrPort) (netip.AddrPort, bool) {
	for _, l := range listeners {
		if dst, ok := l.dst.Load(client); ok {
			return dst.(netip.AddrPort), true
		}
	}
	return netip.AddrPort{}, false
}

func originalUDP(ct *origdst.Conntrack, client netip.AddrPort) (netip.AddrPort, bool) {
	local := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if client.Addr().Is6() {
		local = netip.IPv6Loopback()
	}
	dst, err := ct.UDP(client, netip.AddrPortFrom(local, dnsPort))
	return dst, err == nil
}

// resolvConf reads a resolv.conf again whenever it has changed.
type resolvConf struct {
	path string

	mu   sync.Mutex
	info os.FileInfo
	conf dnsserver.ResolvConf
}

func (r *resolvConf) nameservers() []netip.AddrPort {
	r.mu.Lock()
	defer r.mu.Unlock()
	info, err := os.Stat(r.path)
	if err != nil {
		return r.conf.Nameservers
	}
	if r.info != nil && os.SameFile(r.info, info) && r.info.ModTime().Equal(info.ModTime()) && r.info.Size() == info.Size() {
		return r.conf.Nameservers
	}
	f, err := os.Open(r.path)
	if err != nil {
		return r.conf.Nameservers
	}
	defer func() { _ = f.Close() }()
	if conf, err := dnsserver.ParseResolvConf(f); err == nil {
		r.conf, r.info = conf, info
	}
	return r.conf.Nameservers
}

// searchDomains returns the search list of a resolv.conf; it is used in dedicated mode, where the file is the workload's.
func (r *resolvConf) searchDomains() []string {
	r.nameservers()
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.conf.Search
}
