package main

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/ca"
	"github.com/culvert-mesh/culvert/identity/ca/issuer"
	"github.com/culvert-mesh/culvert/identity/manager"
	"github.com/culvert-mesh/culvert/identity/spire"
	"github.com/culvert-mesh/culvert/identity/svid"
	"github.com/culvert-mesh/culvert/workload/telemetry"
)

// account is a service account of a namespace.
type account struct{ namespace, name string }

// certificates is the manager as the proxy sees it: it may ask for the identities of the pods that are served, and only
// for those. A pod's identity is known in full (its trust domain) only when its workload is, so the certificate is
// acquired when it is first asked for, and let go of with the last pod of the account.
type certificates struct {
	manager   *manager.Manager
	delegated *spire.Delegated // nil unless SPIRE gives the certificates of pods

	mu       sync.Mutex
	accounts map[account]*holding
}

type holding struct {
	pods int
	ids  []identity.ID
}

// newCertificates makes the certificates of a manager and the source that it has.
func newCertificates(m *manager.Manager, source svid.Source) *certificates {
	delegated, _ := source.(*spire.Delegated)
	return &certificates{manager: m, delegated: delegated, accounts: make(map[account]*holding)}
}

// introduce tells SPIRE's API about a pod, before enter asks for its certificate. The returned function undoes it.
func (c *certificates) introduce(w spire.Workload) (undo func()) {
	if c.delegated == nil {
		return func() {}
	}
	c.delegated.Enter(w)
	return func() { c.delegated.Leave(w) }
}

// enter counts a pod of an account; id is the identity that it will most likely have, whose certificate is fetched ahead
// of need.
func (c *certificates) enter(id identity.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := account{id.Namespace(), id.ServiceAccount()}
	h := c.accounts[key]
	if h == nil {
		h = &holding{}
		c.accounts[key] = h
	}
	h.pods++
	c.holdLocked(h, id)
}

// leave undoes enter.
func (c *certificates) leave(key account) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.accounts[key]
	if h == nil {
		return
	}
	if h.pods--; h.pods > 0 {
		return
	}
	delete(c.accounts, key)
	for _, id := range h.ids {
		c.manager.Release(id)
	}
}

func (c *certificates) holdLocked(h *holding, id identity.ID) {
	for _, held := range h.ids {
		if held == id {
			return
		}
	}
	h.ids = append(h.ids, id)
	c.manager.Acquire(id)
}

// Get implements proxy.Certificates.
func (c *certificates) Get(ctx context.Context, id identity.ID) (*svid.SVID, error) {
	s, err := c.manager.Get(ctx, id)
	if !errors.Is(err, manager.ErrNotAcquired) {
		return s, err
	}
	c.mu.Lock()
	h := c.accounts[account{id.Namespace(), id.ServiceAccount()}]
	if h != nil {
		c.holdLocked(h, id)
	}
	c.mu.Unlock()
	if h == nil {
		return nil, err
	}
	return c.manager.Get(ctx, id)
}

// expiries lists the certificates for their metrics.
func (c *certificates) expiries() []telemetry.Certificate {
	var out []telemetry.Certificate
	for _, s := range c.manager.Statuses() {
		e := telemetry.Certificate{Identity: s.ID, Failing: s.LastError != nil}
		if s.SVID != nil {
			e.NotAfter = s.SVID.NotAfter()
		}
		out = append(out, e)
	}
	return out
}

// runner is a source that has something to do beside being asked.
type runner interface {
	Run(ctx context.Context) error
}

// certificateSource makes the source that the settings name.
func certificateSource(s *settings, log *slog.Logger) (svid.Source, error) {
	switch {
	case s.spire != "":
		return spire.New(spire.Config{Address: s.spire, Logger: log})
	case s.spireAdmin != "":
		return spire.NewDelegated(spire.DelegatedConfig{Address: s.spireAdmin, Logger: log})
	case s.caAddress != "":
		return ca.New(ca.Config{
			Address: s.caAddress, RootCA: s.caRootCA, AltHostname: s.caHostname, TokenFile: s.tokenFile, ClusterID: s.cluster,
			TTL: s.secretTTL, Impersonate: s.mode == modeNode, Logger: log, Dial: controlDial(s),
		})
	}
	is, err := issuer.Load(s.caCert, s.caKey)
	if err != nil {
		return nil, err
	}
	return is.WithTTL(s.secretTTL), nil
}
