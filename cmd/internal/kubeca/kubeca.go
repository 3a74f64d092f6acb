package kubeca

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/ca/authority"
	"github.com/culvert-mesh/culvert/identity/ca/server"
)

// The objects in the controller's namespace.
const (
	// SecretName holds the authority; nobody else may read it.
	SecretName = "culvert-ca"
	// BroughtName is the Secret in which a user brings an authority of his own,
	// in Istio's layout.
	BroughtName = "cacerts"
	// RootsName is the ConfigMap with the bundle, under RootsKey.
	RootsName = "culvert-ca-root"
	RootsKey  = authority.KeyRoots
	// RevokedName is the ConfigMap with the revocation lists, under RevokedKey.
	RevokedName = "culvert-ca-crl"
	RevokedKey  = authority.KeyCRL

	// RotateAnnotation on the Secret culvert-ca asks for a new root. Each new
	// value is heeded once.
	RotateAnnotation = "culvert.io/rotate-root"
	// RevokedSerials is an entry of the Secret culvert-ca with the serial
	// numbers of certificates that are revoked, in hexadecimal, one a line. It
	// is for certificates of our own making; who brings an authority brings its
	// lists.
	RevokedSerials = "revoked-serials"
)

const (
	defaultInterval = 5 * time.Second
	// requestTimeout ends a request to an API server that does not answer.
	requestTimeout = 10 * time.Second
	// roundTimeout ends a round of up to some ten requests, one after the other: a server that
	// takes seconds for each must not keep it from its end for ever.
	roundTimeout = time.Minute
)

// Config configures a CA.
type Config struct {
	// Client reaches the API server. Required. It needs get, create and update
	// on the objects above.
	Client kubernetes.Interface
	// Namespace is the controller's own. Required.
	Namespace string
	// Authority says what is issued and how roots follow each other.
	Authority authority.Config
	// Interval is the time between looks at the Secrets; 0 means 5 s.
	Interval time.Duration
	// Logger gets what happens to the authority, and each trouble once. Nil
	// discards.
	Logger *slog.Logger
}

// CA is the authority as one replica of the controller sees it. It is a
// server.Authority.
type CA struct {
	cfg    Config
	logger *slog.Logger
	ready  chan struct{}
	once   sync.Once
	troubles

	now atomic.Pointer[snapshot]
}

var _ server.Authority = (*CA)(nil)

// snapshot is one version of the Secret, understood.
type snapshot struct {
	state     authority.State
	authority *authority.Authority
	version   string // of the Secret
	serials   []byte // its entry RevokedSerials
}

// New makes a CA. Nothing is read before Run.
func New(cfg Config) (*CA, error) {
	var err error
	if cfg.Client == nil || cfg.Namespace == "" {
		err = errors.New("client and namespace are required")
	}
	cfg.Interval = cmp.Or(cfg.Interval, defaultInterval)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	var aerr error
	cfg.Authority, aerr = cfg.Authority.WithDefaults()
	if err := errors.Join(err, aerr); err != nil {
		return nil, fmt.Errorf("make cluster's authority: %w", err)
	}
	return &CA{cfg: cfg, logger: cfg.Logger, ready: make(chan struct{})}, nil
}

// ErrNotReady says that the Secret has not been read or made yet.
var ErrNotReady = errors.New("the authority is not there yet")

// Ready is closed when there is something to sign with.
func (c *CA) Ready() <-chan struct{} { return c.ready }

// Issue implements server.Authority.
func (c *CA) Issue(r *authority.Request, id identity.ID, ttl time.Duration) ([]string, error) {
	s := c.now.Load()
	if s == nil {
		return nil, ErrNotReady
	}
	return s.authority.Issue(r, id, ttl)
}

// Bundle returns the roots that everybody is to trust; nil before Ready.
func (c *CA) Bundle() *identity.Bundle {
	s := c.now.Load()
	if s == nil {
		return nil
	}
	return s.authority.Bundle()
}

// Status is the authority for metrics and dumps.
type Status struct {
	// NotAfter is the end of what signs.
	NotAfter time.Time
	// Brought says that it is the user's.
	Brought bool
	// Rotating says that another signer waits until its root is known.
	Rotating bool
	// Roots are those of the bundle.
	Roots []authority.Root
	// Trouble is what stands in the way of Run and Lead at the moment; nil if
	// nothing does.
	Trouble error
}

// Status describes the authority; the zero value before Ready, but for the
// trouble.
func (c *CA) Status() Status {
	st := Status{Trouble: c.trouble()}
	if s := c.now.Load(); s != nil {
		st.NotAfter, st.Brought, st.Rotating = s.authority.NotAfter(), s.state.Brought, s.state.Next != nil
		st.Roots = s.state.Roots
	}
	return st
}

// Serving returns a function for tls.Config.GetCertificate: a certificate for
// the controller itself with the given DNS names, made by the authority and
// made anew at half of its life and when the authority changes.
func (c *CA) Serving(names []string) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	s := &serving{ca: c, names: names}
	return s.get
}

// Run follows the Secret until ctx ends, which is not an error. It makes the
// Secret if there is none.
func (c *CA) Run(ctx context.Context) error {
	c.repeat(ctx, "follow the authority", c.follow)
	return nil
}

// Lead advances the authority and publishes it until ctx ends, which is not an
// error. Only the replica that leads may call it, while it leads; two at once
// would do no harm but work.
func (c *CA) Lead(ctx context.Context) error {
	c.repeat(ctx, "lead the authority", c.advance)
	return nil
}

// repeat calls fn at every interval, with a bounded time for each. Whoever does
// not do it any more is in no trouble with it.
func (c *CA) repeat(ctx context.Context, what string, fn func(context.Context) error) {
	ticker := time.NewTicker(c.cfg.Interval)
	defer ticker.Stop()
	defer c.forget(what)
	for {
		once, cancel := context.WithTimeout(ctx, roundTimeout)
		err := fn(once)
		cancel()
		if ctx.Err() != nil {
			return
		}
		c.report(c.logger, what, err)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// troubles remembers what is wrong, so that it is logged once and not at every
// interval.
type troubles struct {
	mu   sync.Mutex
	last map[string]error
}

func (t *troubles) report(log *slog.Logger, what string, err error) {
	t.mu.Lock()
	old := t.last[what]
	if t.last == nil {
		t.last = make(map[string]error)
	}
	t.last[what] = err
	t.mu.Unlock()
	switch {
	case err == nil && old != nil:
		log.Info("certificate authority is well again", "task", what)
	case err != nil && (old == nil || old.Error() != err.Error()):
		log.Error("certificate authority in trouble, what there is stays in use", "task", what, "error", err)
	}
}

func (t *troubles) forget(what string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.last, what)
}

func (t *troubles) trouble() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all error
	for _, what := range slices.Sorted(maps.Keys(t.last)) {
		all = errors.Join(all, t.last[what])
	}
	return all
}
