package netlab_test

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/culvert-mesh/culvert/e2e/netlab"
	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/identitytest"
	"github.com/culvert-mesh/culvert/identity/mtls"
)

const caPort = 15012

// istiod is a certificate service that agents reach at an address of theirs.
type istiod struct {
	*identitytest.IstioCA
	t    *testing.T
	ca   *identitytest.CA
	root string
}

func newIstiod(t *testing.T) *istiod {
	t.Helper()
	// The service listens outside of the lab; in a namespace made for the test loopback is down.
	if lo, err := netlink.LinkByName("lo"); err == nil && lo.Attrs().Flags&net.FlagUp == 0 {
		if err := netlink.LinkSetUp(lo); err != nil {
			t.Fatal(err)
		}
	}
	ca := identitytest.NewCA(t, "cluster.local")
	s := &istiod{IstioCA: identitytest.NewIstioCA(t, ca), t: t, ca: ca, root: filepath.Join(t.TempDir(), "root.pem")}
	if err := os.WriteFile(s.root, s.RootPEM, 0o644); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *istiod) flags(host string) []string {
	return []string{"--ca-address=" + net.JoinHostPort(host, "15012"), "--ca-root-ca=" + s.root, "--ca-hostname=" + identitytest.ServerName}
}

// listening is a node or a pod.
type listening interface {
	Listen(ctx context.Context, address string) (net.Listener, error)
}

// listen forwards connections from inside the lab to the service, which is outside of it.
func (s *istiod) listen(where listening, address netip.AddrPort) {
	s.t.Helper()
	l, err := where.Listen(context.Background(), address.String())
	if err != nil {
		s.t.Fatal(err)
	}
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { s.forward(ctx, c) })
		}
	})
	s.t.Cleanup(func() { cancel(); _ = l.Close(); wg.Wait() })
}

func (s *istiod) forward(ctx context.Context, c net.Conn) {
	defer func() { _ = c.Close() }()
	up, err := net.Dial("tcp", s.Address)
	if err != nil {
		return
	}
	defer func() { _ = up.Close() }()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	var wg sync.WaitGroup
	for _, pair := range [][2]net.Conn{{c, up}, {up, c}} {
		wg.Go(func() {
			_, _ = io.Copy(pair[0], pair[1])
			_, _ = c.Close(), up.Close()
		})
	}
	wg.Wait()
}

// serve makes the agents ask the service, at their node's loopback address.
func (s *istiod) serve(m *mesh) {
	m.SetAuthority(s.flags("127.0.0.1")...)
	for _, n := range m.Topology().Nodes() {
		s.listen(n, netip.MustParseAddrPort("127.0.0.1:15012"))
	}
}

// requested counts the requests for each identity, and checks that each names it in the expected way.
func (s *istiod) requested(impersonate bool) map[string]int {
	s.t.Helper()
	counts := map[string]int{}
	for _, r := range s.Requests() {
		id := ""
		if len(r.CSR.URIs) == 1 {
			id = r.CSR.URIs[0].String()
		}
		counts[id]++
		if want := map[bool]string{true: id, false: ""}[impersonate]; r.Impersonated != want {
			s.t.Errorf("request for %q impersonates %q", id, r.Impersonated)
		}
	}
	return counts
}

// answerFor makes the service issue certificates with a short life.
func (s *istiod) answerFor(life time.Duration) {
	s.Answer(func(_ context.Context, _ identitytest.CARequest, chain []string) ([]string, error) {
		block, _ := pem.Decode([]byte(chain[0]))
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		cert.NotAfter = time.Now().Add(life)
		der, err := x509.CreateCertificate(rand.Reader, cert, s.ca.Certificate, cert.PublicKey, s.ca.Key)
		if err != nil {
			return nil, err
		}
		return append([]string{string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))}, chain[1:]...), nil
	})
}

func (s *istiod) away() {
	s.Answer(func(context.Context, identitytest.CARequest, []string) ([]string, error) {
		return nil, status.Error(codes.Unavailable, "istiod is away")
	})
}

// certificate returns what an agent holds for an account, nil when it holds nothing.
func (m *mesh) certificate(a *netlab.Agent, account string) *dumpedCertificates {
	m.t.Helper()
	for _, c := range m.dump(a).Certificates {
		if c.Identity == spiffe(account) {
			return &c
		}
	}
	return nil
}

// serial waits for an account's certificate and returns its serial number.
func (m *mesh) serial(a *netlab.Agent, account string) string {
	m.t.Helper()
	serial := ""
	m.eventually("certificate of "+account, func() bool {
		c := m.certificate(a, account)
		if c == nil || c.State != "Available" || len(c.CertChain) == 0 || len(c.RootCerts) == 0 {
			return false
		}
		serial = c.CertChain[0].SerialNumber
		return true
	})
	return serial
}

// Reference 10.4 test_prefetch_forget_certs: one request for each identity that a pod of the node has, before anybody
// needs it, under that identity; forgotten with the identity's last pod.
func TestCertificatesFollowPods(t *testing.T) {
	s := newIstiod(t)
	m := build(t)
	s.serve(m)
	for _, p := range []*netlab.Pod{m.client, m.local} {
		p.Workload.ServiceAccount = "shared"
	}
	m.start()
	shared := m.serial(m.a, "shared")
	m.serial(m.b, "remote")
	m.mustCall(m.client, at(m.remote), "remote")
	m.mustCall(m.remote, at(m.local), "local")
	if got := s.requested(true); len(got) != 2 || got[spiffe("shared")] != 1 || got[spiffe("remote")] != 1 {
		t.Errorf("requests: %v", got)
	}
	for a, want := range map[*netlab.Agent]string{m.a: "shared", m.b: "remote"} {
		if all := m.dump(a).Certificates; len(all) != 1 || all[0].Identity != spiffe(want) {
			t.Errorf("certificates, want that of %s: %+v", want, all)
		}
	}
	m.client.SetCaptured(false)
	m.applyPods(nodeA)
	m.eventually("pod has left", func() bool { return m.dump(m.a).WorkloadState[m.client.Workload.UID] == nil })
	if m.serial(m.a, "shared") != shared {
		t.Error("the certificate was renewed though a pod of its identity is there")
	}
	m.local.SetCaptured(false)
	m.applyPods(nodeA)
	m.eventually("certificate is forgotten", func() bool { return len(m.dump(m.a).Certificates) == 0 })
	m.local.SetCaptured(true)
	m.applyPods(nodeA)
	if again := m.serial(m.a, "shared"); again == shared {
		t.Error("a forgotten certificate is back")
	}
	if got := s.requested(true); got[spiffe("shared")] != 2 || got[spiffe("remote")] != 1 {
		t.Errorf("requests: %v", got)
	}
}

// A dedicated agent asks in its own name, past its own capture: the service may be an enrolled pod, whose certificate is
// only to be had from it.
func TestDedicatedAgentAsksForItself(t *testing.T) {
	s := newIstiod(t)
	m := build(t)
	s.serve(m)
	s.listen(m.remote, onPort(m.remote, caPort))
	m.b = m.agent(nodeB)
	m.SetAuthority(s.flags(m.remote.Addr().String())...)
	m.captureByHand(m.client) // the rules are there before the agent, as after its restart
	a := m.dedicated(m.client, "--capture")
	m.serial(a, "client")
	m.mustCall(m.client, at(m.remote), "remote")
	m.record(a, netlab.Record{"direction": "outbound", "src.identity": spiffe("client"), "dst.identity": spiffe("remote")})
	for _, r := range s.Requests() {
		if id := r.CSR.URIs[0].String(); (r.Impersonated == id) == (id == spiffe("client")) {
			t.Errorf("request for %s impersonates %q", id, r.Impersonated)
		}
	}
}

// presented returns the serial number of the certificate that a pod's HBONE port presents.
func (m *mesh) presented(s *istiod, to *netlab.Pod) (string, error) {
	own := s.ca.SVID(m.t, spiffe("stranger"))
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := m.stranger.Dial(ctx, "tcp", onPort(to, 15008).String())
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	tc := tls.Client(c, mtls.Client(own, []identity.ID{identity.MustParse(spiffe(to.Workload.ServiceAccount))}, nil))
	if err := tc.HandshakeContext(ctx); err != nil {
		return "", err
	}
	return tc.ConnectionState().PeerCertificates[0].SerialNumber.String(), nil
}

// Certificates of 8 s: a connection lives through several of them, new connections use new ones. Then the service goes
// away: the last one serves to its end, and then connections are refused for that reason, until the service is back.
func TestCertificatesRotate(t *testing.T) {
	t.Parallel()
	s := newIstiod(t)
	s.answerFor(8 * time.Second)
	m := build(t, withFlags("--pool-idle-timeout=1s"))
	s.serve(m)
	m.start()
	held := m.hold(m.client, m.remote)
	seen := map[string]bool{}
	began := time.Now()
	for len(seen) < 4 || time.Since(began) < 9*time.Second { // the first ones have expired by then
		serial, err := m.presented(s, m.remote)
		if err != nil {
			t.Fatalf("handshake after %v: %v", time.Since(began), err)
		}
		seen[serial] = true
		m.alive(held, "while certificates change")
		m.mustCall(m.client, at(m.local), "local") // after a while unused: a tunnel of its own
		time.Sleep(200 * time.Millisecond)
		if time.Since(began) > 4*patience {
			t.Fatalf("%d certificates in %v", len(seen), time.Since(began))
		}
	}

	s.away()
	id := `identity="` + spiffe("remote") + `"`
	m.wantMetric(m.b, "culvert_certificate_renewal_failing", 1, id)
	if expiry, err := m.b.Metric("culvert_certificate_expiration_timestamp_seconds", id); err != nil || expiry < float64(time.Now().Add(-time.Second).Unix()) {
		t.Errorf("certificate's end in the metrics: %v, %v", expiry, err)
	}
	last := m.certificate(m.b, "remote")
	if last.State == "Available" {
		if serial, err := m.presented(s, m.remote); time.Now().Before(last.CertChain[0].ExpirationTime) && (err != nil || serial != last.CertChain[0].SerialNumber) {
			t.Errorf("while the service is away: %s, %v", serial, err)
		}
	}
	m.eventually("certificate has ended", func() bool { return strings.HasPrefix(m.certificate(m.b, "remote").State, "Unavailable: ") })
	if _, err := m.presented(s, m.remote); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("handshake without a certificate: %v", err)
	}
	m.alive(held, "without a valid certificate")
	m.eventually("identity of the client has ended", func() bool { _, err := m.call(m.client, at(m.local)); return err != nil })
	m.wantMetric(m.a, "istio_tcp_connections_failed_total", 1, `response_flags="IDENTITY_ERROR"`)
	s.answerFor(time.Minute)
	err := m.a.Wait(3*patience, "having its certificates again", func() (bool, error) {
		_, local := m.call(m.client, at(m.local))
		_, remote := m.presented(s, m.remote)
		return local == nil && remote == nil, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	m.alive(held, "with new certificates")
	if v, err := m.b.Metric("culvert_certificate_renewal_failing", id); err != nil || v != 0 {
		t.Errorf("renewal is failing: %v, %v", v, err)
	}
}
