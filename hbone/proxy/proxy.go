package proxy

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/culvert-mesh/culvert/hbone/loop"
)

// ErrStopped is returned by Start after Stop.
var ErrStopped = errors.New("proxy is stopped")

// Proxy is the data plane of a node. Make it with New; Run keeps live connections true to policy and revocation lists.
type Proxy struct {
	cfg       Config
	lastFlow  atomic.Uint64
	turns     atomic.Uint32
	loads     loads
	shortage  shortage
	shares    shares
	penalties penalties
	named     sync.Map // podName → *Pod, the newest of that name
	judges    []judge
	networks  *networks // nil: network policies are not evaluated

	mu      sync.Mutex
	pods    map[*Pod]struct{}
	stopped bool
}

// New returns a Proxy without pods. It starts nothing.
func New(cfg Config) (*Proxy, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	p := &Proxy{cfg: cfg, pods: make(map[*Pod]struct{})}
	p.judges = []judge{&authorization{cfg.Policies}, &outside{cfg.Outbound, cfg.Store, cfg.Network}}
	if cfg.NetworkPolicies != nil {
		p.networks = &networks{set: cfg.NetworkPolicies, network: cfg.Network, ownNode: cfg.OwnNode, store: cfg.Store}
		p.judges = append(p.judges, p.networks, &newcomers{p.networks})
	}
	p.shares.init(cfg.Descriptors)
	p.penalties.least = cfg.Penalty
	return p, nil
}

// Start begins to serve a pod. The pod's listeners are closed when it fails.
func (p *Proxy) Start(cfg PodConfig) (*Pod, error) {
	pod, err := newPod(p, cfg)
	if err != nil {
		closeListeners(cfg)
		return nil, err
	}
	p.mu.Lock()
	if p.stopped {
		p.mu.Unlock()
		closeListeners(cfg)
		return nil, ErrStopped
	}
	p.pods[pod] = struct{}{}
	p.named.Store(pod.name(), pod)
	p.mu.Unlock()
	p.shortage.enter()
	if err := pod.start(); err != nil {
		now, cancel := context.WithCancel(context.Background())
		cancel()
		pod.Stop(now)
		return nil, err
	}
	return pod, nil
}

// Pods returns the pods that are served, in no order.
func (p *Proxy) Pods() []*Pod {
	p.mu.Lock()
	defer p.mu.Unlock()
	pods := make([]*Pod, 0, len(p.pods))
	for pod := range p.pods {
		pods = append(pods, pod)
	}
	return pods
}

func (p *Proxy) forget(pod *Pod) {
	p.shortage.leave()
	p.named.CompareAndDelete(pod.name(), pod)
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.pods, pod)
}

// Stop stops all pods as Pod.Stop does, at the same time, and lets none start any more.
func (p *Proxy) Stop(ctx context.Context) {
	p.mu.Lock()
	p.stopped = true
	p.mu.Unlock()
	var wg sync.WaitGroup
	for _, pod := range p.Pods() {
		wg.Go(func() { pod.Stop(ctx) })
	}
	wg.Wait()
}

// Run watches policies, workloads, outbound modes and revocation lists, and ends the connections and tunnels that a change
// forbids, until ctx ends. It does not stop the pods.
func (p *Proxy) Run(ctx context.Context) error {
	if rev := p.cfg.Revocation; rev != nil {
		defer rev.Subscribe(p.recheckTunnels)()
		p.recheckTunnels() // tunnels may be older than the watch
	}
	var wg sync.WaitGroup
	for _, j := range p.judges {
		wg.Go(func() { p.watch(ctx, j) })
	}
	wg.Go(func() { p.watchStore(ctx) })
	wg.Wait()
	return nil
}

// inTurn returns the loops one after the other: for what has no sockets yet to be counted.
func (p *Proxy) inTurn() *loop.Loop {
	return p.cfg.Loops[int(p.turns.Add(1)-1)%len(p.cfg.Loops)]
}

// quietest returns the loop with the fewest sockets.
func (p *Proxy) quietest() *loop.Loop {
	best := p.cfg.Loops[0]
	if len(p.cfg.Loops) == 1 {
		return best
	}
	least := best.Stats().Sockets
	for _, l := range p.cfg.Loops[1:] {
		if n := l.Stats().Sockets; n < least {
			best, least = l, n
		}
	}
	return best
}
