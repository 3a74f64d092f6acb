package authority_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/ca"
	"github.com/culvert-mesh/culvert/identity/ca/authority"
	"github.com/culvert-mesh/culvert/identity/mtls"
	"github.com/culvert-mesh/culvert/identity/svid"
)

// node is a client of the authority that renews at its own times.
type node struct {
	id     identity.ID
	svid   *svid.SVID
	renews time.Time
}

// renew fetches as package ca does: key and request, answer, checks.
func (n *node) renew(t *testing.T, a *authority.Authority, ttl time.Duration) {
	t.Helper()
	key, csr, err := ca.CSR(n.id)
	if err != nil {
		t.Fatal(err)
	}
	r, err := authority.ParseRequest(csr)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := a.Issue(r, n.id, ttl)
	if err != nil {
		t.Fatal(err)
	}
	var chain []*x509.Certificate
	for _, element := range answer[:len(answer)-1] {
		chain = append(chain, one(t, element))
	}
	bundle, err := identity.ParseBundle(td, []byte(answer[len(answer)-1]))
	if err != nil {
		t.Fatal(err)
	}
	if n.svid, err = svid.New(chain, key, bundle); err != nil {
		t.Fatal(err)
	}
	n.renews = n.svid.NotBefore().Add(n.svid.NotAfter().Sub(n.svid.NotBefore()) / 2)
}

// shakeHands connects two nodes and returns what either of them said.
func shakeHands(client, server *node) error {
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	served := make(chan error, 1)
	go func() {
		conn := tls.Server(far, mtls.Server(server.svid, nil))
		err := conn.Handshake()
		if err == nil {
			_, err = conn.Write([]byte("x"))
		}
		_ = far.Close() // or the client would wait for an answer that never comes
		served <- err
	}()
	conn := tls.Client(near, mtls.Client(client.svid, []identity.ID{server.id}, nil))
	err := conn.Handshake()
	if err == nil {
		_, err = conn.Read(make([]byte, 1))
	}
	_ = near.Close()
	if other := <-served; err == nil {
		err = other
	}
	return err
}

// look is the time between looks at everything.
const look = 3 * time.Hour

// live runs the authority and nodes for a time, or to the first handshake that
// fails, and returns how many handshakes there were and how many failed, and how
// many roots came and went.
func live(t *testing.T, cfg authority.Config, ttl, duration time.Duration) (tried, failed, switched, dropped int) {
	t.Helper()
	cfg.TrustDomain = td
	cfg, err := cfg.WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	root, err := authority.NewRoot(td, time.Now(), cfg.RootTTL)
	if err != nil {
		t.Fatal(err)
	}
	st := authority.NewState(root, false)
	var nodes []*node
	for i := range 3 {
		nodes = append(nodes, &node{id: identity.MustParse(fmt.Sprintf("spiffe://td/ns/a/sa/n%d", i))})
	}
	for end := time.Now().Add(duration); time.Now().Before(end) && failed == 0; time.Sleep(look) {
		var p authority.Progress
		st, p = authority.Advance(st, time.Now(), cfg)
		if p.Switched {
			switched++
		}
		dropped += p.Dropped
		if p.Step == authority.MakeRoot {
			next, err := authority.NewRoot(td, time.Now(), cfg.RootTTL)
			if err != nil {
				t.Fatal(err)
			}
			st = st.Introduce(next, false, time.Now(), cfg)
		}
		a, err := authority.New(st, cfg)
		if err != nil {
			t.Fatal(err)
		}
		for i, n := range nodes {
			// The last one has trouble with its authority, and comes back only
			// right before its certificate ends.
			last := i == len(nodes)-1
			if n.svid == nil || !last && !time.Now().Before(n.renews) || last && time.Until(n.svid.NotAfter()) <= look {
				n.renew(t, a, ttl)
				n.renews = n.renews.Add(time.Duration(i) * time.Hour) // out of step
			}
		}
		for i := range nodes {
			for j := range nodes {
				if i == j {
					continue
				}
				tried++
				if err := shakeHands(nodes[i], nodes[j]); err != nil {
					failed++
				}
			}
		}
	}
	return tried, failed, switched, dropped
}

// TestRootRotationHandshakes lives through several roots: every node reaches
// every other one at every look, whoever has renewed already.
func TestRootRotationHandshakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tried, failed, switched, dropped := live(t, authority.Config{MaxTTL: day, RootTTL: 8 * day}, day, 18*day)
		if failed != 0 || switched < 2 || dropped < 2 {
			t.Errorf("%d of %d handshakes failed; %d new signers, %d roots gone", failed, tried, switched, dropped)
		}
	})
}

// TestRootRotationTooFast shows that the times are there for a reason: without
// them handshakes fail, and this test would see it.
func TestRootRotationTooFast(t *testing.T) {
	for name, cfg := range map[string]authority.Config{
		"no_settling": {MaxTTL: day, RootTTL: 8 * day, Settle: time.Second},
		"no_overlap":  {MaxTTL: day, RootTTL: 8 * day, Settle: 31 * time.Hour, Overlap: time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if tried, failed, _, _ := live(t, cfg, day, 9*day); failed == 0 {
					t.Errorf("none of %d handshakes failed", tried)
				}
			})
		})
	}
}
