package netlab_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/e2e/netlab"
	"github.com/culvert-mesh/culvert/hbone"
	"github.com/culvert-mesh/culvert/hbone/loop"
	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/ca/issuer"
	"github.com/culvert-mesh/culvert/identity/mtls"
	"github.com/culvert-mesh/culvert/identity/svid"
)

// rawClient speaks HBONE from a pod that is not enrolled, under any identity of the lab's authority.
type rawClient struct {
	m      *mesh
	loop   *loop.Loop
	dialer *hbone.Dialer
	svid   *svid.SVID
}

func (m *mesh) authority() *issuer.Issuer {
	m.t.Helper()
	is, err := issuer.Load(m.CACert(), m.CAKey())
	if err != nil {
		m.t.Fatal(err)
	}
	return is
}

func (m *mesh) raw(from *netlab.Pod, as string, to *netlab.Pod) *rawClient {
	m.t.Helper()
	s, err := m.authority().Fetch(context.Background(), identity.MustParse(as))
	if err != nil {
		m.t.Fatal(err)
	}
	return m.rawWith(from, s, to)
}

func (m *mesh) rawWith(from *netlab.Pod, s *svid.SVID, to *netlab.Pod) *rawClient {
	m.t.Helper()
	l, err := loop.New()
	if err != nil {
		m.t.Fatal(err)
	}
	go l.Run()
	expected := []identity.ID{identity.MustParse(spiffe(to.Workload.ServiceAccount))}
	c := &rawClient{m: m, loop: l, svid: s, dialer: &hbone.Dialer{
		TLS:  func() *tls.Config { return mtls.Client(s, expected, nil) },
		Loop: l, Timeout: 5 * time.Second,
		Socket: func(family int) (int, error) { return from.NS().Socket(family, syscall.SOCK_STREAM, 0) },
	}}
	m.t.Cleanup(func() { c.dialer.Close(); l.Close() })
	return c
}

func (c *rawClient) connect(to *netlab.Pod, authority string) (*hbone.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return c.dialer.Dial(ctx, netip.AddrPortFrom(to.Addr(), 15008), hbone.Request{Authority: authority})
}

// wantStatus connects and expects a refusal.
func (c *rawClient) wantStatus(to *netlab.Pod, authority string, want hbone.Status) {
	c.m.t.Helper()
	_, err := c.connect(to, authority)
	var se *hbone.StatusError
	if !errors.As(err, &se) || se.Status != want {
		c.m.t.Errorf("CONNECT %s: %v, want status %d", authority, err, want)
	}
}

func (c *rawClient) wantEcho(to *netlab.Pod, authority string) {
	c.m.t.Helper()
	conn, err := c.connect(to, authority)
	if err != nil {
		c.m.t.Errorf("CONNECT %s: %v", authority, err)
		return
	}
	_, _ = conn.Write([]byte("hello\n"))
	_ = conn.CloseWrite()
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	if answer, err := io.ReadAll(conn); err != nil || !strings.HasPrefix(string(answer), to.Name()+" ") {
		c.m.t.Errorf("CONNECT %s: answer %q, %v", authority, answer, err)
	}
}

// hbone_ip_mismatch, test_svc_hostname_port, test_svc_hostname_named_port, and further authorities.
func TestAuthorities(t *testing.T) {
	m := build(t)
	m.AddService(ns, "echo", vip, map[uint16]uint16{80: 8080}, m.remote)
	named := m.AddService(ns, "named", vip.Next(), map[uint16]uint16{80: 8080}, m.remote)
	named.Ports = map[uint16]uint16{80: 0} // a named port: only the endpoint knows its number
	m.start()
	c := m.raw(m.stranger, spiffe("stranger"), m.remote)
	c.wantEcho(m.remote, at(m.remote).String())
	c.wantEcho(m.remote, "echo."+ns+".svc.cluster.local:80")
	c.wantEcho(m.remote, "named."+ns+".svc.cluster.local:80")
	c.wantStatus(m.remote, at(m.local).String(), hbone.StatusBadRequest)
	m.record(m.b, netlab.Record{"level": "WARN", "error": "ip mismatch: " + m.remote.Addr().String() + " != " + m.local.Addr().String()})
	c.wantStatus(m.remote, "no-port", hbone.StatusBadRequest)
	c.wantStatus(m.remote, m.remote.Addr().String()+":99999", hbone.StatusBadRequest)
	c.wantStatus(m.remote, "nobody."+ns+".svc.cluster.local:80", hbone.StatusUnavailable)
	c.wantStatus(m.remote, "echo."+ns+".svc.cluster.local:81", hbone.StatusUnavailable)
	c.wantStatus(m.remote, netip.AddrPortFrom(m.remote.Addr(), 1).String(), hbone.StatusUnavailable)
	for _, port := range []uint16{15001, 15006, 15008} {
		c.wantStatus(m.remote, netip.AddrPortFrom(m.remote.Addr(), port).String(), hbone.StatusUnavailable)
	}
}

// test_policy: an identity that no ALLOW policy names.
func TestPolicyOfIdentities(t *testing.T) {
	m := build(t)
	m.State.Policies = append(m.State.Policies, &netlab.Policy{
		Name: "only-client", Namespace: ns, Scope: "Namespace", Action: "Allow",
		Rules: [][][]map[string]any{{{{"principals": []any{map[string]any{"Exact": "cluster.local/ns/default/sa/client"}}}}}},
	})
	m.start()
	m.raw(m.stranger, spiffe("stranger"), m.remote).wantStatus(m.remote, at(m.remote).String(), hbone.StatusUnauthorized)
	m.record(m.b, netlab.Record{"level": "ERROR", "src.identity": spiffe("stranger"), "error": "connection closed due to policy rejection: allow policies exist, but none allowed"})
	m.raw(m.stranger, spiffe("client"), m.remote).wantEcho(m.remote, at(m.remote).String())
	m.mustCall(m.client, at(m.remote), "remote")
	m.wantMetric(m.b, "istio_tcp_connections_failed_total", 1, `response_flags="DENY"`, `reporter="destination"`)
}

// A policy that comes cuts the connections that it forbids, and no others.
func TestPolicyChangeCutsConnections(t *testing.T) {
	m := newMesh(t)
	cut, err := m.dial(m.client, at(m.remote))
	if err != nil {
		t.Fatal(err)
	}
	kept, err := m.dial(m.local, at(m.remote))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*session{cut, kept} {
		if _, err := s.ask("before"); err != nil {
			t.Fatal(err)
		}
	}
	m.State.Policies = append(m.State.Policies, &netlab.Policy{
		Name: "no-client", Namespace: ns, Scope: "Namespace", Action: "Deny",
		Rules: [][][]map[string]any{{{{"principals": []any{map[string]any{"Exact": "cluster.local/ns/default/sa/client"}}}}}},
	})
	m.apply()
	_ = cut.SetReadDeadline(time.Now().Add(patience))
	if _, err := cut.lines.ReadString('\n'); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the forbidden connection ended with %v, want a reset", err)
	}
	if _, err := kept.ask("after"); err != nil {
		t.Errorf("the other connection: %v", err)
	}
	m.record(m.b, netlab.Record{"direction": "inbound", "error": "connection closed due to policy change"})
	m.refused(m.client, at(m.remote))
}

// trust_domain_mismatch_rejected.
func TestOtherTrustDomainIsRejected(t *testing.T) {
	m := newMesh(t)
	_, err := m.rawWith(m.stranger, m.foreignSVID("spiffe://clusterset.local/ns/default/sa/client"), m.remote).connect(m.remote, at(m.remote).String())
	if err == nil {
		t.Fatal("a certificate of another trust domain was accepted")
	}
	m.wantEarly(m.b, "trust domain")
}

// foreignSVID is a certificate that the lab's authority itself would not issue: signed by its key for another trust domain.
func (m *mesh) foreignSVID(uri string) *svid.SVID {
	m.t.Helper()
	own, err := m.authority().Fetch(context.Background(), identity.MustParse(spiffe("client")))
	if err != nil {
		m.t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(m.CACert(), m.CAKey())
	if err != nil {
		m.t.Fatal(err)
	}
	id := identity.MustParse(uri)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		m.t.Fatal(err)
	}
	template := *own.Certificates[0]
	template.URIs, template.PublicKey, template.SignatureAlgorithm = []*url.URL{id.URL()}, nil, 0
	der, err := x509.CreateCertificate(rand.Reader, &template, pair.Leaf, &key.PublicKey, pair.PrivateKey)
	if err != nil {
		m.t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		m.t.Fatal(err)
	}
	return &svid.SVID{ID: id, Certificates: []*x509.Certificate{leaf}, PrivateKey: key, Bundle: own.Bundle}
}

// wantEarly waits for the line of a connection that was refused before anything was known of it.
func (m *mesh) wantEarly(a *netlab.Agent, text string) {
	m.t.Helper()
	_, err := a.WaitRecord(patience, func(r netlab.Record) bool {
		return r.Str("level") == "WARN" && strings.Contains(r.Str("error"), text) && r.Str("src.addr") != ""
	})
	if err != nil {
		m.t.Errorf("no line about %q: %v", text, err)
	}
}

// Peers that are not HBONE, or nobody.
func TestPeersThatAreNotHBONE(t *testing.T) {
	m := newMesh(t)
	to := netip.AddrPortFrom(m.remote.Addr(), 15008)
	t.Run("plaintext", func(t *testing.T) {
		s, err := m.dial(m.stranger, to)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(s, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		_ = s.SetReadDeadline(time.Now().Add(patience))
		if _, err := io.ReadAll(s); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("the connection is left open")
		}
		m.wantEarly(m.b, "TLS handshake")
	})
	t.Run("no_certificate", func(t *testing.T) {
		s, err := m.dial(m.stranger, to)
		if err != nil {
			t.Fatal(err)
		}
		_ = s.SetDeadline(time.Now().Add(patience))
		c := tls.Client(s, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}) //nolint:gosec // the test's own server
		_ = c.Handshake()
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read: %v", err)
		}
		m.wantEarly(m.b, "certificate")
	})
	t.Run("other_authority", func(t *testing.T) {
		is, err := issuer.New(identity.MustTrustDomain("cluster.local"))
		if err != nil {
			t.Fatal(err)
		}
		forged, err := is.Fetch(context.Background(), identity.MustParse(spiffe("client")))
		if err != nil {
			t.Fatal(err)
		}
		real, err := m.authority().Fetch(context.Background(), identity.MustParse(spiffe("client")))
		if err != nil {
			t.Fatal(err)
		}
		forged.Bundle = real.Bundle // it trusts the mesh; the mesh does not trust it
		if _, err := m.rawWith(m.stranger, forged, m.remote).connect(m.remote, at(m.remote).String()); err == nil {
			t.Error("a certificate of another authority was accepted")
		}
		m.wantEarly(m.b, "unknown authority")
	})
	t.Run("wrong_server_identity", func(t *testing.T) {
		_, err := m.raw(m.stranger, spiffe("client"), m.local).connect(m.remote, at(m.remote).String())
		var mismatch *mtls.IdentityMismatchError
		if !errors.As(err, &mismatch) {
			t.Errorf("got %v", err)
		}
	})
}
