package kubenode_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/cmd/internal/enrol"
	"github.com/culvert-mesh/culvert/cmd/internal/kubenode"
	"github.com/culvert-mesh/culvert/redirect"
	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/netnstest"
	"github.com/culvert-mesh/culvert/redirect/podset"
	"github.com/culvert-mesh/culvert/redirect/procns"
)

func TestMain(m *testing.M) { os.Exit(netnstest.Main(m)) }

const patience = 30 * time.Second

// rig is an agent with everything around it: an API server, processes of pods, and a data plane that does nothing but
// listen.
type rig struct {
	t     *testing.T
	api   *apiServer
	agent *kubenode.Agent
	set   *podset.Set
	end   func()

	mu       sync.Mutex
	procs    map[string]process // by UID
	searches int
	started  map[string]int // services, by UID
	startErr error
	certErr  error
	hosts    map[netip.Addr]string
	hostErr  error
	old      bool                                     // superseded
	askedOld atomic.Int32                             // how often that was asked
	capture  func(podset.Pod) (podset.Capture, error) // nil means that of the Set
}

type process struct {
	ns   *netns.NS
	addr netip.Addr
}

func newRig(t *testing.T) *rig {
	netnstest.Require(t)
	return &rig{t: t, api: newAPIServer(t), procs: map[string]process{}, started: map[string]int{}, hosts: map[netip.Addr]string{}}
}

// run starts the agent; change may be nil.
func (r *rig) run(change func(*kubenode.Config)) {
	r.t.Helper()
	log := slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(r.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	var agent *kubenode.Agent
	set, err := podset.New(podset.Config{
		Runner: r, AuditInterval: 200 * time.Millisecond, SocketAudit: -1, RetryInterval: 50 * time.Millisecond, DrainTimeout: time.Second, Logger: log,
		NewCapture: r.capture, OnEvent: func(e podset.Event) { agent.Observe(e) },
	})
	if err != nil {
		r.t.Fatal(err)
	}
	cfg := kubenode.Config{
		REST: r.api.config(), Node: "n1", Namespace: "culvert-system", DaemonSet: "culvert-node",
		Enrol:   enrol.Settings{Exclude: []string{"kube-system"}},
		Options: func() redirect.Options { return redirect.Options{} },
		Set:     set, Finder: r, HostRules: r, Certified: r.certified, Superseded: r.superseded,
		Settle: 50 * time.Millisecond, Drain: 5 * time.Second, AddTimeout: 5 * time.Second, Retry: 20 * time.Millisecond, Look: 50 * time.Millisecond, Logger: log,
	}
	if change != nil {
		change(&cfg)
	}
	if agent, err = kubenode.New(cfg); err != nil {
		r.t.Fatal(err)
	}
	r.agent, r.set = agent, set
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.t.Context()))
	var wg sync.WaitGroup
	wg.Go(func() { _ = set.Run(ctx) })
	wg.Go(func() { _ = agent.Run(ctx) })
	r.end = sync.OnceFunc(func() { cancel(); wg.Wait() })
	r.t.Cleanup(r.end)
}

// Find implements kubenode.Finder as procns does: by UID, and only where the address is.
func (r *rig) Find(_ context.Context, wanted map[string]procns.Wanted) (map[string]*netns.NS, []procns.Problem) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.searches++
	found := map[string]*netns.NS{}
	var problems []procns.Problem
	for uid, w := range wanted {
		p, ok := r.procs[uid]
		switch {
		case !ok:
		case !slices.Contains(w.Addresses, p.addr):
			problems = append(problems, procns.Problem{UID: uid, PID: 7, Err: procns.ErrNoAddress})
		default:
			ns, err := p.ns.Dup()
			if err != nil {
				problems = append(problems, procns.Problem{UID: uid, Err: err})
				continue
			}
			found[uid] = ns
		}
	}
	return found, problems
}

// Start implements podset.Runner.
func (r *rig) Start(_ context.Context, pod podset.Pod) (func(context.Context), error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.startErr != nil {
		return nil, r.startErr
	}
	r.started[pod.UID]++
	return func(context.Context) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.started[pod.UID]--
	}, nil
}

// certified takes for ever while certErr says so.
func (r *rig) certified(ctx context.Context, _ podset.Pod) error {
	r.mu.Lock()
	err := r.certErr
	r.mu.Unlock()
	if errors.Is(err, errNever) {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	return err
}

func (r *rig) superseded() bool {
	r.askedOld.Add(1)
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.old
}

// Add implements kubenode.HostRules.
func (r *rig) Add(addr netip.Addr, uid string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.hostErr != nil {
		return r.hostErr
	}
	r.hosts[addr] = uid
	return nil
}

// Remove implements kubenode.HostRules.
func (r *rig) Remove(addr netip.Addr, uid string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.hosts[addr] == uid {
		delete(r.hosts, addr)
	}
	return nil
}

func (r *rig) with(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

// host returns what the host lets probes through to.
func (r *rig) host() map[netip.Addr]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.hosts)
}

// namespace makes or changes a namespace.
func (r *rig) namespace(name string, labels, annotations object) {
	r.api.put("namespaces", object{"kind": "Namespace", "apiVersion": "v1", "metadata": object{
		"name": name, "uid": "uid-" + name, "labels": labels, "annotations": annotations,
	}})
}

var ambient = object{"istio.io/dataplane-mode": "ambient"}

// pod makes a pod "team/name"; ip may be empty.
func (r *rig) pod(name, uid, ip string, change func(object)) {
	space, short, _ := strings.Cut(name, "/")
	status := object{"phase": "Running"}
	if ip != "" {
		status["podIP"], status["podIPs"] = ip, []any{object{"ip": ip}}
	}
	o := object{
		"kind": "Pod", "apiVersion": "v1", "metadata": object{"namespace": space, "name": short, "uid": uid},
		"spec": object{"nodeName": "n1", "serviceAccountName": "sa"}, "status": status,
	}
	if change != nil {
		change(o)
	}
	r.api.put("pods", o)
}

// process makes a namespace with an address and a process of the pod in it.
func (r *rig) process(uid, ip string) *netns.NS {
	r.t.Helper()
	ns := netnstest.New(r.t)
	r.with(func() { r.procs[uid] = process{ns, netip.MustParseAddr(ip)} })
	return ns
}

// eventually waits until f returns nothing to complain of.
func (r *rig) eventually(f func() string) {
	r.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		why := f()
		if why == "" {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatal(why)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// says waits for the annotation.
func (r *rig) says(name, want string) {
	r.t.Helper()
	r.eventually(func() string {
		if got := r.api.redirection(name); got != want {
			return fmt.Sprintf("pod %s is annotated %q, want %q; events:\n%s", name, got, want, r.api.told(name))
		}
		return ""
	})
}

// rules reports whether a namespace has rules of the mesh.
func rules(t *testing.T, ns *netns.NS) bool {
	t.Helper()
	c, err := redirect.New(ns, redirect.Options{})
	if err != nil {
		t.Fatal(err)
	}
	found, err := c.Verify()
	if err != nil {
		t.Fatal(err)
	}
	return !slices.ContainsFunc(found, func(f redirect.Finding) bool { return f.Part == redirect.PartRule })
}

var (
	errNo    = errors.New("not today")
	errNever = errors.New("not within any time")
)

// reachable starts a pod with the address 10.0.0.2. reach says who answers at its port: the "application", or nobody, because
// nobody listens for the agent here, so that what is captured is "refused".
func (r *rig) reachable(uid string) (pod *netns.NS, reach func() string) {
	t := r.t
	peer := netnstest.New(t)
	pod = r.process(uid, "10.0.0.2")
	netnstest.Veth(t,
		netnstest.End{NS: peer, Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24")}},
		netnstest.End{NS: pod, Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/24")}})
	netnstest.Echo(t, netnstest.Listen(t, pod, "10.0.0.2:8080", netnstest.Options{}))
	return pod, func() string {
		c, err := netnstest.Dial(t, peer, "tcp", "10.0.0.2:8080", netnstest.Options{})
		if err != nil {
			return "refused"
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		_, _ = io.WriteString(c, "x")
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			return "refused"
		}
		return "application"
	}
}
