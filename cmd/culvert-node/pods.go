package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"syscall"

	"github.com/culvert-mesh/culvert/hbone/loop"
	"github.com/culvert-mesh/culvert/hbone/proxy"
	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/spire"
	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/origdst"
	"github.com/culvert-mesh/culvert/redirect/podset"
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/dns"
	"github.com/culvert-mesh/culvert/workload/telemetry"
)

// packetMark is on every socket of the agent in a pod's namespace, so that it is not captured again. It is a contract
// with istio-cni.
const packetMark netns.Mark = 0x539

// pods serves the pods of the node: it is what podset runs for each of them.
type pods struct {
	log          *slog.Logger
	proxy        *proxy.Proxy
	certificates *certificates
	store        *workload.Store
	telemetry    *telemetry.Telemetry
	resolver     *dns.Resolver // nil without DNS
	nameservers  func() []netip.AddrPort
	search       []string // nil: those of Kubernetes
	trustDomain  identity.TrustDomain
	node         string
	mark         netns.Mark

	mu      sync.Mutex
	running map[string]*servedPod
}

// servedPod is one pod that is being served.
type servedPod struct {
	proxy  *proxy.Pod
	dns    *dnsService // nil without DNS
	forget func()      // ends what SPIRE's API gives for the pod
}

// Start implements podset.Runner.
func (p *pods) Start(ctx context.Context, pod podset.Pod) (func(context.Context), error) {
	id, err := identity.New(p.trustDomain, pod.Namespace, pod.ServiceAccount)
	if err != nil {
		return nil, err
	}
	if w := p.store.Snapshot().WorkloadByPod(pod.Namespace, pod.Name, pod.ServiceAccount, p.node); w != nil {
		id = w.Identity()
	}
	served := &servedPod{}
	if served.dns, err = p.startDNS(pod); err != nil {
		return nil, err
	}
	if served.proxy, err = p.startProxy(pod); err != nil {
		served.dns.stop(ctx)
		return nil, err
	}
	served.forget = p.certificates.introduce(spire.Workload{UID: pod.UID, Namespace: pod.Namespace, ServiceAccount: pod.ServiceAccount, Name: pod.Name})
	p.certificates.enter(id)
	p.mu.Lock()
	p.running[pod.UID] = served
	p.mu.Unlock()
	return func(ctx context.Context) { p.stop(ctx, pod, served) }, nil
}

func (p *pods) stop(ctx context.Context, pod podset.Pod, served *servedPod) {
	served.proxy.Stop(ctx)
	served.dns.stop(ctx)
	p.certificates.leave(account{pod.Namespace, pod.ServiceAccount})
	served.forget()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running[pod.UID] == served {
		delete(p.running, pod.UID)
	}
}

// Check implements podset.Checker.
func (p *pods) Check(pod podset.Pod) error {
	p.mu.Lock()
	served := p.running[pod.UID]
	p.mu.Unlock()
	if served == nil {
		return errors.New("pod is not served")
	}
	return served.dns.failure()
}

func (p *pods) startProxy(pod podset.Pod) (*proxy.Pod, error) {
	cfg := proxy.PodConfig{
		UID: pod.UID, Namespace: pod.Namespace, Name: pod.Name, ServiceAccount: pod.ServiceAccount,
		Sockets: sockets{pod.NS, p.mark}, OriginalDst: origdst.TCP,
	}
	var open []*loop.Acceptor
	for _, l := range []struct {
		port uint16
		at   **loop.Acceptor
	}{{proxy.OutboundPort, &cfg.Outbound}, {proxy.PassthroughPort, &cfg.Passthrough}, {proxy.HBONEPort, &cfg.Inbound}} {
		a, err := listen(pod.NS, l.port, p.mark)
		if err != nil {
			for _, a := range open {
				_ = a.Close()
			}
			return nil, err
		}
		*l.at = a
		open = append(open, a)
	}
	return p.proxy.Start(cfg)
}

// listen opens a listener on all addresses of the pod, of both families where there are two.
func listen(ns *netns.NS, port uint16, mark netns.Mark) (*loop.Acceptor, error) {
	addr := netip.AddrPortFrom(netip.IPv6Unspecified(), port)
	fd, err := ns.Socket(syscall.AF_INET6, syscall.SOCK_STREAM, 0, mark)
	if errors.Is(err, syscall.EAFNOSUPPORT) {
		addr = netip.AddrPortFrom(netip.IPv4Unspecified(), port)
		fd, err = ns.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0, mark)
	}
	if err != nil {
		return nil, err
	}
	if err := loop.Listen(fd, addr, true); err != nil {
		loop.CloseFD(fd)
		if errors.Is(err, syscall.EADDRINUSE) {
			err = fmt.Errorf("port %d is taken in the pod: %w", port, err)
		}
		return nil, err
	}
	return loop.NewAcceptor(fd)
}

// sockets makes sockets in a pod's namespace; it is a proxy.Sockets.
type sockets struct {
	ns   *netns.NS
	mark netns.Mark
}

// Sockets implements proxy.Sockets.
func (s sockets) Sockets(fds []int, family int) error {
	return s.ns.Sockets(fds, family, syscall.SOCK_STREAM, 0, s.mark)
}

// localWorkload finds the workload of a pod, and waits for it a moment when it is not known yet.
func (p *pods) localWorkload(ctx context.Context, pod podset.Pod) (*workload.Workload, error) {
	return workload.Wait(ctx, p.store, func(s *workload.Snapshot) (*workload.Workload, bool) {
		w := s.WorkloadByPod(pod.Namespace, pod.Name, pod.ServiceAccount, p.node)
		return w, w != nil
	})
}
