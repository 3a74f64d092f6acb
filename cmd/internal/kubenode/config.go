package kubenode

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"k8s.io/client-go/rest"

	"github.com/culvert-mesh/culvert/cmd/internal/enrol"
	"github.com/culvert-mesh/culvert/redirect"
	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/podset"
	"github.com/culvert-mesh/culvert/redirect/procns"
	"github.com/culvert-mesh/culvert/workload/egress"
)

// Finder finds the network namespaces of running pods by UID; it is a procns.Finder.
type Finder interface {
	Find(ctx context.Context, wanted map[string]procns.Wanted) (map[string]*netns.NS, []procns.Problem)
}

// HostRules lets the kubelet's probes through to enrolled pods.
type HostRules interface {
	// Add lets them through to addr, which belongs to the pod now.
	Add(addr netip.Addr, uid string) error
	// Remove undoes that, unless addr belongs to another pod by now.
	Remove(addr netip.Addr, uid string) error
}

// Config describes an Agent. Fields are required unless they say otherwise.
type Config struct {
	// REST says how to reach the API server.
	REST *rest.Config
	// Node is this node's name.
	Node string
	// Namespace and DaemonSet are the agent's own; they tell an upgrade from an end. Empty means that an end is never
	// assumed.
	Namespace, DaemonSet string
	// Enrol are the administrator's choices.
	Enrol enrol.Settings
	// Options returns what is captured of every pod. Carve-outs of a pod are added to it. It is called often.
	Options func() redirect.Options
	// Set enrols. Its OnEvent must call Agent.Observe.
	Set *podset.Set
	// Finder finds pods that run already.
	Finder Finder
	// HostRules keeps what it is told where the host cannot have rules yet.
	HostRules HostRules
	// Certified returns nil when the pod's certificate is there; it may wait until ctx ends.
	Certified func(ctx context.Context, pod podset.Pod) error
	// Synced is closed when the state of the mesh is known: starting pods wait for that, running ones are captured at
	// once unless an earlier agent serves them, see Superseded. nil waits for nothing.
	Synced <-chan struct{}
	// Clean removes what an earlier agent has left, or the Set could not take away, in a pod that is not to be enrolled any
	// more, unless it is busy: that agent still serves connections there. nil means the rules of package redirect.
	Clean func(ns *netns.NS) (busy bool, err error)

	// Superseded reports whether another agent on this node has the word, a newer one or, until this one is ready, an
	// earlier one: annotations are its business then, or two agents of two minds would write in turns. nil means never.
	Superseded func() bool

	// Outbound is told the outbound policy of each namespace that asks for one, before any of its pods is enrolled and
	// whenever it changes. nil means that nobody wants to know.
	Outbound *egress.Modes

	// Workers is how many pods are worked on at once. Zero means 8.
	Workers int
	// Settle is how long a leaving pod goes on being served after others were told to send no HBONE any more. Zero
	// means 2 s, negative none.
	Settle time.Duration
	// Drain is how long the connections of a pod that leaves may go on. Zero means an hour.
	Drain time.Duration
	// AddTimeout bounds one ADD of the CNI plugin. Zero means 9 s, a bit less than the plugin waits.
	AddTimeout time.Duration
	// Retry is the pause after the first failure of a pod; it doubles up to 30 s. Zero means 500 ms.
	Retry time.Duration
	// Look is how often a pod is looked at in which an earlier agent is busy, or where its rules could not be removed. Zero
	// means 10 s.
	Look time.Duration
	// Logger may be nil.
	Logger *slog.Logger
}

const (
	maxRetry = 30 * time.Second
	// certificateWait is how long one look waits for a certificate. Certificates come within that, or come late.
	certificateWait = 300 * time.Millisecond
	// enrolWait bounds how long a worker waits for one pod; it goes on being enrolled.
	enrolWait = 5 * time.Second
	// quietTries is how often in a row a pod may have no process before that is a warning.
	quietTries = 5
)

// errStillWaiting is why a look ended whose time was up.
var errStillWaiting = errors.New("still waiting")

func (c Config) complete() (Config, error) {
	var errs []error
	for _, f := range []struct {
		name    string
		missing bool
	}{
		{"REST", c.REST == nil}, {"Node", c.Node == ""}, {"Options", c.Options == nil}, {"Set", c.Set == nil},
		{"Finder", c.Finder == nil}, {"HostRules", c.HostRules == nil}, {"Certified", c.Certified == nil},
	} {
		if f.missing {
			errs = append(errs, errors.New("make node agent: "+f.name+" is required"))
		}
	}
	for _, d := range []struct {
		value    *time.Duration
		fallback time.Duration
	}{{&c.Settle, 2 * time.Second}, {&c.Drain, time.Hour}, {&c.AddTimeout, 9 * time.Second}, {&c.Retry, 500 * time.Millisecond}, {&c.Look, 10 * time.Second}} {
		if *d.value == 0 {
			*d.value = d.fallback
		}
	}
	if c.Workers <= 0 {
		c.Workers = 8
	}
	if c.Synced == nil {
		known := make(chan struct{})
		close(known)
		c.Synced = known
	}
	if c.Superseded == nil {
		c.Superseded = func() bool { return false }
	}
	if c.Clean == nil {
		c.Clean = clean
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, errors.Join(errs...)
}

// clean removes the rules of a pod unless somebody serves it: connections that are captured would stall without them.
func clean(ns *netns.NS) (busy bool, err error) {
	c, err := redirect.New(ns, redirect.Options{})
	if err != nil {
		return false, err
	}
	if there, err := c.Present(); err != nil || !there {
		return false, err
	}
	sockets, err := redirect.MarkedSockets(ns)
	if err != nil || len(sockets) > 0 {
		return len(sockets) > 0, err
	}
	return false, c.Delete()
}
