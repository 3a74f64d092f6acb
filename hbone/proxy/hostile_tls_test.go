package proxy_test

import (
	"context"
	"crypto/tls"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/hbone/proxy"
	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/identitytest"
	"github.com/culvert-mesh/culvert/identity/mtls"
	"github.com/culvert-mesh/culvert/identity/svid"
)

// knock connects to the HBONE port of the pod under attack.
func (s *siege) knock() (net.Conn, netip.AddrPort) {
	s.t.Helper()
	c, err := net.Dial("tcp", s.server.inbound.String())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c, c.LocalAddr().(*net.TCPAddr).AddrPort()
}

// mallory is a certificate that the mesh's authority signed.
func (s *siege) mallory(opts ...identitytest.Option) *svid.SVID {
	s.t.Helper()
	return s.ca.SVID(s.t, "spiffe://cluster.local/ns/default/sa/mallory", opts...)
}

func (s *siege) client13(of *svid.SVID) *tls.Config {
	return mtls.Client(of, []identity.ID{s.server.w.Identity()}, nil)
}

// TestHostileHandshake: who gets no tunnel. Each case comes many times.
func TestHostileHandshake(t *testing.T) {
	rev, path := revocation(t)
	for _, tc := range []struct {
		name   string
		prove  func(s *siege) *tls.Config // nil: no TLS at all
		garble func(rng *rand.Rand) []byte
		alert  string // empty: the connection is just closed
		reason string // mtls.Reason
		text   string // in the log
	}{
		{name: "tls-garbage", garble: garbage, reason: mtls.ReasonHandshake, text: "TLS handshake: "},
		{name: "not-even-a-record", garble: noise, reason: mtls.ReasonNotTLS, text: "first record does not look like a TLS handshake"},
		{name: "plaintext-on-15008", garble: request, reason: mtls.ReasonNotTLS, text: "first record does not look like a TLS handshake"},
		{
			name: "tls-1.2", alert: "protocol version not supported", reason: mtls.ReasonHandshake, text: "client offered only unsupported versions",
			prove: func(s *siege) *tls.Config {
				c := s.client13(s.mallory())
				c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
				return c
			},
		},
		{
			name: "no-alpn", reason: mtls.ReasonHandshake, text: `peer did not agree on ALPN h2`,
			prove: func(s *siege) *tls.Config {
				c := s.client13(s.mallory())
				c.NextProtos = nil
				return c
			},
		},
		{
			name: "no-client-certificate", alert: "certificate required", reason: mtls.ReasonNoCertificate, text: "client didn't provide a certificate",
			prove: func(s *siege) *tls.Config {
				c := s.client13(s.mallory())
				c.Certificates, c.GetClientCertificate = nil, nil
				return c
			},
		},
		{
			name: "certificate-of-another-trust-domain", alert: "bad certificate", reason: mtls.ReasonWrongTrustDomain, text: "wrong trust domain: peer is spiffe://elsewhere.test/ns/default/sa/mallory, want one of cluster.local",
			prove: func(s *siege) *tls.Config {
				chain, key := s.ca.Issue(s.t, "spiffe://elsewhere.test/ns/default/sa/mallory")
				other, err := svid.New(chain, key, identity.NewBundle(identity.MustTrustDomain("elsewhere.test"), s.ca.Bundle().Certificates()))
				if err != nil {
					s.t.Fatal(err)
				}
				return s.client13(other)
			},
		},
		{
			name: "certificate-of-another-authority", alert: "bad certificate", reason: mtls.ReasonUnknownAuthority, text: "unknown authority",
			prove: func(s *siege) *tls.Config {
				chain, key := identitytest.NewCA(s.t, "cluster.local").Issue(s.t, "spiffe://cluster.local/ns/default/sa/mallory")
				other, err := svid.New(chain, key, s.ca.Bundle())
				if err != nil {
					s.t.Fatal(err)
				}
				return s.client13(other)
			},
		},
		{
			name: "expired", alert: "bad certificate", reason: mtls.ReasonExpired, text: "expired",
			prove: func(s *siege) *tls.Config { return s.client13(s.mallory(identitytest.Expired())) },
		},
		{
			name: "revoked", alert: "bad certificate", reason: mtls.ReasonRevoked, text: "is on the revocation list",
			prove: func(s *siege) *tls.Config {
				bad := s.mallory()
				s.revoke(path, bad)
				waitFor(t, "revocation", func() bool { return rev.Check(bad.Certificates, s.ca.Bundle()) != nil })
				return s.client13(bad)
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newSiege(t, func(c *proxy.Config) { c.Revocation = rev })
			var config *tls.Config
			if tc.prove != nil {
				config = tc.prove(s)
			}
			rng := rand.New(rand.NewPCG(4, 5))
			for i := range 30 {
				c, addr := s.knock()
				switch {
				case tc.garble != nil:
					_, _ = c.Write(tc.garble(rng))
					_, _ = io.Copy(io.Discard, c)
				case tc.alert != "":
					wantAlert(t, tls.Client(c, config), tc.alert)
				default:
					_ = tls.Client(c, config).Handshake()
					_, _ = io.Copy(io.Discard, c)
				}
				flag := proxy.FlagTLSFailure
				if tc.reason == mtls.ReasonRevoked {
					flag = proxy.FlagCertRevoked
				}
				if f := s.seen.reason(t, addr, flag, tc.text); f == nil || !f.Early || mtls.Reason(f.Err) != tc.reason && tc.name != "tls-garbage" {
					t.Fatalf("attempt %d was reported as %+v", i, f)
				}
				c.Close()
				if i == 15 {
					s.probe()
				}
			}
			s.survived()
		})
	}
}

// garbage begins as a TLS record and is none.
func garbage(rng *rand.Rand) []byte {
	b := make([]byte, 100+rng.IntN(5000))
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	n := rng.IntN(len(b))
	copy(b, []byte{22, 3, 1, byte(n >> 8), byte(n)})
	return b
}

func noise(rng *rand.Rand) []byte {
	b := garbage(rng)
	b[0] = 0xff
	return b
}

func request(*rand.Rand) []byte { return []byte("GET / HTTP/1.1\r\nHost: server\r\n\r\n") }

// revocation watches a file of revocation lists that is not there yet.
func revocation(t *testing.T) (*mtls.Revocation, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "revoked.pem")
	rev, err := mtls.NewRevocation(mtls.RevocationConfig{Path: path, Interval: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = rev.Watch(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return rev, path
}

// revoke puts a certificate on the list.
func (s *siege) revoke(path string, bad *svid.SVID) {
	s.t.Helper()
	if err := os.WriteFile(path, s.ca.CRL(s.t, bad.Leaf()), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// TestHostileRevokedWhileConnected: the certificate was good when the tunnel was made.
func TestHostileRevokedWhileConnected(t *testing.T) {
	rev, path := revocation(t)
	s := newSiege(t, func(c *proxy.Config) { c.Revocation = rev })
	bad := s.mallory()
	s.certs.set(bad)
	a := s.attack()
	a.alive(1, s.dst)
	s.revoke(path, bad)
	a.WaitEnd(t)
	s.seen.reason(t, a.addr, proxy.FlagCertRevoked, "is on the revocation list")
	a.leave()
	s.survived()
}

// clientHello is what a client says first.
func clientHello(t *testing.T) []byte {
	t.Helper()
	ours, theirs := net.Pipe()
	defer ours.Close()
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = tls.Client(theirs, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13}).Handshake()
	})
	b := make([]byte, 1<<14)
	n, err := ours.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	ours.Close()
	wg.Wait()
	return b[:n]
}
