package proxy

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/culvert-mesh/culvert/hbone/loop"
	"github.com/culvert-mesh/culvert/hbone/pool"
)

// Pod is one enrolled pod that is being served.
type Pod struct {
	proxy *Proxy
	cfg   PodConfig
	log   *slog.Logger
	pool  *pool.Pool
	// own are the agent's ports, which nothing may lead to; listeners the addresses that it listens on.
	own       []uint16
	listeners []netip.AddrPort
	// congestion is what app-facing sockets are set to; empty leaves them alone.
	congestion string
	handshakes handshakes
	ctx        context.Context // ends when the pod's connections are to be cut
	cancel     context.CancelCauseFunc

	flows     flowTable
	review    review
	suspended suspensions
	stash     stash
	local     atomic.Pointer[localState]
	opaque    atomic.Bool // source addresses cannot be kept; it was said once

	sourcePort atomic.Uint32 // counts, see bindSource

	accepts sync.WaitGroup // accept loops
	work    sync.WaitGroup // flows, inbound tunnels and handshakes

	mu       sync.Mutex
	tunnels  map[*peer]struct{} // inbound tunnels
	draining bool
	stopping chan struct{} // closed by the first Stop
	stopped  chan struct{} // closed when nothing is left
}

func newPod(p *Proxy, cfg PodConfig) (*Pod, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	pod := &Pod{
		proxy: p, cfg: cfg, log: p.cfg.Logger.With("pod", cfg.Namespace+"/"+cfg.Name),
		own:      []uint16{OutboundPort, PassthroughPort, HBONEPort},
		tunnels:  make(map[*peer]struct{}),
		stopping: make(chan struct{}),
		stopped:  make(chan struct{}),
	}
	pod.handshakes.init(p.cfg.MaxHandshakes, pod.stopping)
	pod.ctx, pod.cancel = context.WithCancelCause(context.Background())
	pod.suspended.base = p.cfg.Suspension
	pod.sourcePort.Store(rand.Uint32N(sourcePorts))
	pod.pool = pool.New(pool.Config{
		Loops: p.cfg.Loops, Idle: p.cfg.PoolIdle, MaxStreams: p.cfg.PoolMaxStreams,
		DialTimeout: p.cfg.ConnectTimeout + p.cfg.HandshakeTimeout,
	})
	for _, l := range []*loop.Acceptor{cfg.Outbound, cfg.Inbound, cfg.Passthrough} {
		if l == nil {
			continue
		}
		pod.listeners = append(pod.listeners, l.Addr())
		if port := l.Addr().Port(); !slices.Contains(pod.own, port) {
			pod.own = append(pod.own, port)
		}
	}
	if err := pod.prepareListeners(); err != nil {
		return nil, err
	}
	pod.stash.init(pod)
	return pod, nil
}

// UID returns the UID that the pod was started with.
func (p *Pod) UID() string { return p.cfg.UID }

// Config returns what the pod was started with.
func (p *Pod) Config() PodConfig { return p.cfg }

func (p *Pod) start() error {
	for _, s := range []struct {
		listener *loop.Acceptor
		name     string
		serve    func(fd int, client netip.AddrPort)
	}{
		{p.cfg.Inbound, "inbound", p.serveInbound},
		{p.cfg.Passthrough, "passthrough", p.servePassthrough},
	} {
		if s.listener != nil {
			p.accepts.Go(func() { p.accept(s.listener, s.name, s.serve) })
		}
	}
	if l := p.cfg.Outbound; l != nil {
		p.accepts.Add(1)
		if err := l.Serve(p.proxy.inTurn(), &outboundListener{shorted{pod: p, listener: l, name: "outbound"}}); err != nil {
			p.accepts.Done()
			return err
		}
	}
	return nil
}

func closeListeners(cfg PodConfig) {
	for _, l := range []*loop.Acceptor{cfg.Outbound, cfg.Inbound, cfg.Passthrough} {
		if l != nil {
			_ = l.Close()
		}
	}
}

// Stop ends the pod in two stages: it stops accepting and asks peers to open no further streams, waits until all
// connections have ended by themselves or ctx has, and then cuts what is left; peers get a GOAWAY all the same. A ctx
// that has ended makes it immediate, as for a pod that is gone. Stop returns when nothing of the pod is left. Calling it
// again with a ctx that ends earlier hastens it.
func (p *Pod) Stop(ctx context.Context) {
	p.mu.Lock()
	first := !p.draining
	p.draining = true
	var tunnels []*peer
	if first {
		close(p.stopping)
		tunnels = p.peersLocked()
	}
	p.mu.Unlock()
	if first {
		closeListeners(p.cfg)
		for _, t := range tunnels {
			t.drain()
		}
		go p.finishStop() // ends with the pod's last connection; Stop waits for it
	}
	select {
	case <-p.stopped:
		return
	case <-ctx.Done():
	}
	p.cut()
	<-p.stopped
}

// finishStop waits for everything that the pod has started.
func (p *Pod) finishStop() {
	p.accepts.Wait()
	drained := p.pool.Drain()
	p.work.Wait()
	<-drained
	p.cancel(ErrDrain)
	p.pool.Close(ErrDrain)
	p.stash.close()
	p.proxy.forget(p)
	close(p.stopped)
}

// cut ends all that lives.
func (p *Pod) cut() {
	p.cancel(ErrDrain)
	for _, f := range p.flows.all() {
		f.owner.cut(ErrDrain)
	}
	for _, t := range p.peers() {
		t.close(ErrDrain)
	}
	p.pool.Close(ErrDrain)
}

// spawn runs a step of a flow, which may outlive the flow.
func (p *Pod) spawn(f func()) { p.work.Go(f) }
