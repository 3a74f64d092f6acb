package kubenode

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"github.com/culvert-mesh/culvert/cmd/internal/enrol"
	"github.com/culvert-mesh/culvert/redirect/podset"
)

// Agent enrols the pods of one node. Make it with New; it does nothing before Run.
type Agent struct {
	cfg    Config
	client *client
	events *recorder
	seeker *seeker
	hosts  *hosts
	queue  workqueue.TypedRateLimitingInterface[string] // keys of pods

	pods, spaces cache.SharedIndexInformer
	owner        cache.SharedIndexInformer // the agent's own DaemonSet
	outbound     *outbound
	listed       chan struct{} // closed when both informers have their first lists
	ready        chan struct{} // closed when each pod of the first list was worked on once
	locks        keyLocks
	hostTurn     sync.RWMutex // held for reading while addresses of a track change

	life context.Context // ended by LeaveAll: pods are let go for good
	end  context.CancelFunc

	mu      sync.Mutex
	tracked map[string]*track // by UID
	first   map[string]bool   // keys of the first list that wait still; nil before the list
	changed chan struct{}     // closed and replaced at each event of an informer
	owned   bool              // the DaemonSet was seen
}

// track is what is known of a pod that was enrolled, or begun to be. Only who has the lock of the pod's key uses it,
// except for leaving, gone and stuck, which the Agent's mutex guards.
type track struct {
	key   string // namespace/name
	ref   podRef
	since time.Time
	addrs []netip.Addr // that the namespace was found to have, and that the host lets probes through to

	wrote, wroteAt string       // the annotation that was written last, and to which version of the pod
	warned         string       // the warnings that were told
	certified      bool         // its certificate was seen
	resuming       bool         // an earlier agent serves it or has enabled it, and something is missing here
	hostErr        error        // why the host does not let probes through
	guarded        []netip.Addr // those of addrs that the host's rules have taken

	leaving bool      // told not to be enrolled any more
	gone    bool      // leaving: the Set has let it go
	stuck   bool      // leaving: the Set could not take everything away
	leaveAt time.Time // leaving: when others have stopped to send HBONE
}

// New checks the configuration.
func New(cfg Config) (*Agent, error) {
	cfg, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	c, err := newClient(cfg.REST)
	if err != nil {
		return nil, err
	}
	a := &Agent{
		cfg: cfg, client: c, events: newRecorder(c, cfg.Node, cfg.Logger), seeker: newSeeker(cfg.Finder, cfg.Logger),
		queue:  workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](cfg.Retry, maxRetry)),
		pods:   cache.NewSharedIndexInformer(c.podsOf(cfg.Node), &pod{}, 10*time.Minute, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc}),
		spaces: cache.NewSharedIndexInformer(c.namespaces(), &namespace{}, 0, nil),
		owner:  cache.NewSharedIndexInformer(c.daemonSets(cfg.Namespace, cfg.DaemonSet), &daemonSet{}, 0, nil),
		listed: make(chan struct{}), ready: make(chan struct{}), tracked: map[string]*track{}, changed: make(chan struct{}),
	}
	if a.hosts, err = newHosts(c); err != nil {
		return nil, fmt.Errorf("make node agent: %w", err)
	}
	a.outbound = &outbound{modes: cfg.Outbound, namespaces: a.spaces.GetStore(), log: cfg.Logger}
	a.life, a.end = context.WithCancel(context.Background())
	if err := a.follow(); err != nil {
		return nil, fmt.Errorf("make node agent: %w", err)
	}
	return a, nil
}

// follow registers what the informers tell.
func (a *Agent) follow() error {
	_, err1 := a.pods.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { a.touch(o) },
		UpdateFunc: func(_, o any) { a.touch(o) },
		DeleteFunc: func(o any) { a.touch(o) },
	})
	_, err2 := a.spaces.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(o any) { a.touchNamespace(o) },
		UpdateFunc: func(old, o any) {
			was, ok1 := old.(*namespace)
			is, ok2 := o.(*namespace)
			if !ok1 || !ok2 || !sameFacts(was, is) {
				a.touchNamespace(o)
			}
		},
		DeleteFunc: func(o any) {
			if name, err := cache.DeletionHandlingMetaNamespaceKeyFunc(o); err == nil {
				_ = a.outbound.follow(name) // nothing is wrong with what is gone
			}
			a.announce()
		},
	})
	return errors.Join(err1, err2, a.pods.SetTransform(trim), a.spaces.SetTransform(trim), a.owner.SetTransform(trim),
		a.pods.SetWatchErrorHandlerWithContext(a.trouble("pods")), a.spaces.SetWatchErrorHandlerWithContext(a.trouble("namespaces")),
		a.owner.SetWatchErrorHandlerWithContext(a.trouble("daemonsets")),
		a.hosts.informer.SetWatchErrorHandlerWithContext(a.trouble("nodes")))
}

func (a *Agent) trouble(what string) cache.WatchErrorHandlerWithContext {
	return func(ctx context.Context, _ *cache.Reflector, err error) {
		if ctx.Err() == nil {
			a.cfg.Logger.Warn("following the API server's objects failed", "resource", what, "error", err)
		}
	}
}

// touch queues the pod of an event.
func (a *Agent) touch(obj any) {
	key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(obj)
	if err != nil {
		return
	}
	a.queue.Add(key)
	a.announce()
}

// touchNamespace queues all pods of a namespace.
func (a *Agent) touchNamespace(obj any) {
	if n, ok := obj.(*namespace); ok {
		_ = a.outbound.follow(n.Name) // what is wrong is told to its pods
		keys, err := a.pods.GetIndexer().IndexKeys(cache.NamespaceIndex, n.Name)
		if err == nil {
			for _, key := range keys {
				a.queue.Add(key)
			}
		}
	}
	a.announce()
}

// announce wakes who waits for an event.
func (a *Agent) announce() {
	a.mu.Lock()
	defer a.mu.Unlock()
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *Agent) next() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.changed
}

// Ready is closed when each pod that was there at the beginning is enrolled, found to stay out, or has failed once. A pod that
// an earlier agent has enabled counts when its certificate is there, too, or restartGrace is over: until this agent is ready
// the earlier one goes on serving it.
func (a *Agent) Ready() <-chan struct{} { return a.ready }

// Listed is closed when the pods of the node are known, so that the CNI plugin can be served.
func (a *Agent) Listed() <-chan struct{} { return a.listed }

// Run follows the node's pods until ctx ends. Pods stay as they are then; see Leave. It is called once.
func (a *Agent) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer a.end()
	defer a.queue.ShutDown()
	wg.Go(func() { a.spaces.RunWithContext(ctx) })
	wg.Go(func() { a.pods.RunWithContext(ctx) })
	wg.Go(func() { a.hosts.run(ctx, a.Refresh) })
	wg.Go(func() { a.events.run(ctx) })
	wg.Go(func() { a.seeker.run(ctx) })
	wg.Go(func() { a.lookForOwner(ctx) })
	if !cache.WaitForCacheSync(ctx.Done(), a.spaces.HasSynced, a.pods.HasSynced) {
		return nil
	}
	a.begin()
	close(a.listed)
	working, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(a.life, stop)()
	for range a.cfg.Workers {
		wg.Go(func() { a.work(working) })
	}
	wg.Go(func() { a.sweep(working) })
	<-ctx.Done()
	return nil
}

// begin notes the pods of the first list.
func (a *Agent) begin() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.first = map[string]bool{}
	for _, key := range a.pods.GetStore().ListKeys() {
		a.first[key] = true
		a.queue.Add(key)
	}
	if len(a.first) == 0 {
		close(a.ready)
	}
}

// worked notes that a pod was worked on.
func (a *Agent) worked(key string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.first[key] {
		return
	}
	delete(a.first, key)
	if len(a.first) == 0 {
		close(a.ready)
	}
}

// resuming reports whether an earlier agent serves the pod, or has enabled it, and this one cannot serve it as well yet. The
// caller has the lock of the key.
func (a *Agent) resuming(key string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, t := range a.tracked {
		if t.key == key && t.resuming && !t.leaving {
			return true
		}
	}
	return false
}

func (a *Agent) work(ctx context.Context) {
	for {
		key, end := a.queue.Get()
		if end {
			return
		}
		if ctx.Err() == nil {
			a.handle(ctx, key)
		}
		a.queue.Done(key)
	}
}

func (a *Agent) handle(ctx context.Context, key string) {
	unlock := a.locks.lock(key)
	again, err := a.reconcile(ctx, key)
	resuming := a.resuming(key)
	unlock()
	if !resuming {
		a.worked(key)
	}
	switch {
	case err != nil:
		if ctx.Err() == nil {
			level := slog.LevelWarn
			if errors.Is(err, errNotFound) && a.queue.NumRequeues(key) < quietTries {
				level = slog.LevelDebug // a pod that starts or ends has none for a moment
			}
			a.cfg.Logger.Log(ctx, level, "pod is not as it should be", "pod", key, "error", err)
		}
		a.queue.AddRateLimited(key)
	case again > 0:
		a.queue.Forget(key)
		a.queue.AddAfter(key, again)
	default:
		a.queue.Forget(key)
	}
}

// Observe is to be called for each event of the Set. It does not block.
func (a *Agent) Observe(e podset.Event) {
	ref := podRef{e.Pod.Namespace, e.Pod.Name, e.Pod.UID}
	switch e.Kind {
	case podset.EventFailed:
		a.events.warn(ref, reasonFailed, e.Err.Error())
	case podset.EventRepaired:
		a.events.warn(ref, reasonRepaired, fmt.Sprintf("somebody had changed the capture of this pod; it was put right: %v", e.Findings))
	case podset.EventDamaged:
		a.events.warn(ref, reasonDamaged, fmt.Sprintf("capture of this pod is damaged: %v %v", e.Findings, e.Err))
	case podset.EventForeign:
		a.events.warn(ref, reasonForeign, fmt.Sprintf("%d sockets in this pod go past the mesh: they carry the agent's packet mark", len(e.Sockets)))
	case podset.EventLeft:
		if e.Err != nil {
			a.events.warn(ref, reasonLeft, e.Err.Error())
		}
		a.mu.Lock()
		if t := a.tracked[e.Pod.UID]; t != nil && t.leaving {
			t.gone = true
			t.stuck = t.stuck || e.Err != nil
		}
		a.mu.Unlock()
	}
	a.queue.Add(e.Pod.Namespace + "/" + e.Pod.Name)
}

// pod returns the pod of that key as it was last seen.
func (a *Agent) pod(key string) *pod {
	obj, exists, err := a.pods.GetStore().GetByKey(key)
	if err != nil || !exists {
		return nil
	}
	p, _ := obj.(*pod)
	return p
}

// decide returns what is to be with a pod; false while its namespace is not known.
func (a *Agent) decide(p *pod) (enrol.Decision, bool) {
	obj, exists, err := a.spaces.GetStore().GetByKey(p.Namespace)
	n, ok := obj.(*namespace)
	if err != nil || !exists || !ok {
		return enrol.Decision{}, false
	}
	d := enrol.Decide(p.facts(), enrol.Namespace{Labels: n.Labels, Annotations: n.Annotations}, a.cfg.Enrol)
	if err := a.outbound.follow(n.Name); d.In && err != nil {
		d.Warnings = append(d.Warnings, "annotation "+enrol.AnnotationOutbound+" of the namespace: "+err.Error()+"; REGISTRY_ONLY is in force")
	}
	return d, true
}

// WithAddresses calls f with the addresses that the host is to let probes through to, address to UID. They do not change
// meanwhile.
func (a *Agent) WithAddresses(f func(map[netip.Addr]string) error) error {
	a.hostTurn.Lock()
	defer a.hostTurn.Unlock()
	addrs := map[netip.Addr]string{}
	a.mu.Lock()
	for uid, t := range a.tracked {
		of := t.addrs
		if p := a.pod(t.key); len(of) == 0 && !t.leaving && p != nil && p.uid() == uid {
			of = p.addrs() // it was not found yet, and may heed the mark since an earlier agent
		}
		for _, addr := range of {
			addrs[addr] = uid
		}
	}
	a.mu.Unlock()
	return f(addrs)
}

// Refresh looks at all pods again: what Config.Options returns has changed.
func (a *Agent) Refresh() {
	for _, key := range a.pods.GetStore().ListKeys() {
		a.queue.Add(key)
	}
}
