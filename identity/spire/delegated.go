package spire

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	delegated "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/delegatedidentity/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/svid"
)

// maxAnswer bounds one message of SPIRE's agent; bundles of many federated
// trust domains are the largest.
const maxAnswer = 16 << 20

// DelegatedConfig configures a Delegated.
type DelegatedConfig struct {
	// Address is the admin socket of SPIRE's agent, "unix:///path". Required;
	// private keys come over it, so it is a Unix socket or nothing.
	Address string
	// Logger gets a line when a stream fails or works again, and for SVIDs that
	// are of no use. Nil discards.
	Logger *slog.Logger
}

// Workload is a pod of this node that is being served.
type Workload struct {
	// UID of the pod; it may be empty when the rest says enough.
	UID string
	// Namespace and ServiceAccount make the identity that the pod may get.
	// Required.
	Namespace, ServiceAccount string
	// Name of the pod; may be empty.
	Name string
}

// selectors are the k8s selectors of SPIRE's workload attestor that are true of
// the pod. SPIRE grants what is registered for any subset of them: for the pod's
// UID as spire-controller-manager does, or for the service account.
func (w Workload) selectors() []string {
	list := []string{"ns:" + w.Namespace, "sa:" + w.ServiceAccount}
	if w.UID != "" {
		list = append(list, "pod-uid:"+w.UID)
	}
	if w.Name != "" {
		list = append(list, "pod-name:"+w.Name)
	}
	return list
}

// Delegated is a svid.Pusher for an agent that serves many pods: SPIRE's
// Delegated Identity API gives it the SVIDs of others. SPIRE's agent must list
// this agent's own SPIFFE ID among its authorized_delegates.
//
// Only identities of workloads that have been entered are to be had, and only
// when SPIRE grants the workload exactly that identity.
type Delegated struct {
	address string
	logger  *slog.Logger
	wake    chan struct{} // size 1: "look at the workloads again"

	mu        sync.Mutex
	answers   chan struct{} // closed when roots come after they did not, then replaced
	changed   chan struct{} // closed at each change of what follows, then replaced
	workloads map[Workload]*granted
	bundles   map[identity.TrustDomain]*identity.Bundle
	bundleErr error
	next      int
	subs      map[int]func(*svid.SVID)

	pushing sync.Mutex // one announcement at a time, in order
}

// granted is what SPIRE has said about one workload since it was entered.
type granted struct {
	workload Workload

	holders   int
	synced    bool
	err       error
	documents []document
	svids     map[identity.ID]*svid.SVID
}

// names reports whether SPIRE has sent a document for id, be it of use or not.
func (g *granted) names(id identity.ID) bool {
	return slices.ContainsFunc(g.documents, func(doc document) bool { return doc.id == id })
}

var _ svid.Pusher = (*Delegated)(nil)

// NewDelegated makes a Delegated. It connects in Run.
func NewDelegated(cfg DelegatedConfig) (*Delegated, error) {
	u, err := url.Parse(cfg.Address)
	if err != nil || u.Scheme != "unix" || u.Host != "" || !filepath.IsAbs(u.Path) {
		return nil, fmt.Errorf("make Delegated Identity source: address %q is not of the form unix:///path", cfg.Address)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Delegated{
		address:   "unix://" + u.Path,
		logger:    cfg.Logger,
		wake:      make(chan struct{}, 1),
		answers:   make(chan struct{}),
		changed:   make(chan struct{}),
		workloads: make(map[Workload]*granted),
		bundles:   make(map[identity.TrustDomain]*identity.Bundle),
		subs:      make(map[int]func(*svid.SVID)),
	}, nil
}

// Enter makes the SVIDs of a workload available. Each call wants one Leave.
func (d *Delegated) Enter(w Workload) {
	d.mu.Lock()
	defer d.mu.Unlock()
	g := d.workloads[w]
	if g == nil {
		g = &granted{workload: w}
		d.workloads[w] = g
		d.wakeUp()
	}
	g.holders++
}

// Leave undoes one Enter; with the last one the workload's keys are dropped.
func (d *Delegated) Leave(w Workload) {
	d.mu.Lock()
	defer d.mu.Unlock()
	g := d.workloads[w]
	if g == nil {
		return
	}
	if g.holders--; g.holders == 0 {
		delete(d.workloads, w)
		d.announceLocked()
		d.wakeUp()
	}
}

// Run follows the API until ctx ends, which is not an error. It connects again
// whenever a stream breaks.
func (d *Delegated) Run(ctx context.Context) error {
	conn, err := grpc.NewClient(d.address,
		grpc.WithTransportCredentials(insecure.NewCredentials()), // a Unix socket, whose other end the kernel vouches for
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)),
		// gRPC's own pauses grow to two minutes: so long nobody would hear that SPIRE's agent is back.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: firstPause, Multiplier: 1.6, Jitter: 0.2, MaxDelay: maxProbe},
			MinConnectTimeout: maxProbe,
		}),
	)
	if err != nil {
		return fmt.Errorf("follow Delegated Identity API: %w", err)
	}
	defer func() { _ = conn.Close() }()
	var streams sync.WaitGroup
	defer streams.Wait()
	client := delegated.NewDelegatedIdentityClient(conn)
	streams.Go(func() { d.repeat(ctx, "bundles", maxProbe, d.followBundles(client)) })
	running := make(map[*granted]context.CancelFunc)
	for {
		d.mu.Lock()
		wanted := slices.Collect(maps.Values(d.workloads))
		d.mu.Unlock()
		d.adjust(ctx, running, wanted, client, &streams)
		select {
		case <-ctx.Done():
			return nil
		case <-d.wake:
		}
	}
}

// adjust starts and ends one stream for each workload.
func (d *Delegated) adjust(ctx context.Context, running map[*granted]context.CancelFunc, wanted []*granted,
	client delegated.DelegatedIdentityClient, streams *sync.WaitGroup,
) {
	for g, cancel := range running {
		if !slices.Contains(wanted, g) {
			cancel()
			delete(running, g)
		}
	}
	for _, g := range wanted {
		if running[g] != nil {
			continue
		}
		once, cancel := context.WithCancel(ctx)
		running[g] = cancel
		streams.Go(func() {
			defer cancel()
			d.repeat(once, g.workload.Namespace+"/"+g.workload.Name, maxPause, d.followWorkload(client, g))
		})
	}
}

// Fetch returns the SVID that SPIRE grants for id to a workload that has been
// entered. It waits for SPIRE's first answer, and fails when that is a refusal
// or holds other identities only. While SPIRE is away the last SVID is returned
// to its end.
func (d *Delegated) Fetch(ctx context.Context, id identity.ID) (*svid.SVID, error) {
	for {
		got, changed, err := d.current(id)
		if got != nil {
			return got, nil
		}
		if err != nil {
			return nil, fmt.Errorf("fetch %s from Delegated Identity API: %w", id, err)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("fetch %s from Delegated Identity API: %w", id, context.Cause(ctx))
		}
	}
}

// current returns the SVID or an error, or else what to wait for.
func (d *Delegated) current(id identity.ID) (*svid.SVID, <-chan struct{}, error) {
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	var newest *svid.SVID
	var cause error
	var ended time.Time
	var offered []string
	entered, waiting := false, false
	for w, g := range d.workloads {
		if w.Namespace != id.Namespace() || w.ServiceAccount != id.ServiceAccount() {
			continue
		}
		entered = true
		if s := g.svids[id]; s != nil && !s.Expired(now) && (newest == nil || s.NotAfter().After(newest.NotAfter())) {
			newest = s
		}
		switch {
		case g.err != nil:
			cause = g.err
		case !g.synced || g.names(id) && d.bundles[id.TrustDomain()] == nil:
			waiting = true
		case g.svids[id] != nil:
			ended = g.svids[id].NotAfter()
		default:
			for other := range g.svids {
				offered = append(offered, other.String())
			}
		}
	}
	switch {
	case newest != nil:
		return newest, nil, nil
	case !entered:
		return nil, nil, errors.New("no workload of this node has it")
	case cause != nil:
		return nil, nil, cause
	case waiting && d.bundleErr != nil:
		return nil, nil, fmt.Errorf("roots: %w", d.bundleErr)
	case waiting:
		return nil, d.changed, nil
	case !ended.IsZero():
		return nil, nil, fmt.Errorf("what it granted expired at %s", ended.UTC().Format(time.RFC3339))
	case len(offered) == 0:
		return nil, nil, errors.New("it grants no identity of a service account")
	}
	slices.Sort(offered)
	return nil, nil, fmt.Errorf("it grants %s only", strings.Join(slices.Compact(offered), ", "))
}

// Subscribe registers fn for each SVID that SPIRE delivers from now on; see
// svid.Pusher.
func (d *Delegated) Subscribe(fn func(*svid.SVID)) (cancel func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	id := d.next
	d.next++
	d.subs[id] = fn
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.subs, id)
	}
}

func (d *Delegated) announceLocked() {
	close(d.changed)
	d.changed = make(chan struct{})
}

// wakeUp makes Run look at the workloads again. It does not block.
func (d *Delegated) wakeUp() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}
