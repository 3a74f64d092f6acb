package mtls_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/identitytest"
	"github.com/culvert-mesh/culvert/identity/mtls"
	"github.com/culvert-mesh/culvert/identity/svid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	webID   = "spiffe://td/ns/default/sa/web"
	apiID   = "spiffe://td/ns/default/sa/api"
	otherID = "spiffe://td/ns/default/sa/other"
)

var (
	web   = identity.MustParse(webID)
	api   = identity.MustParse(apiID)
	other = identity.MustParse(otherID)
)

// outcome is what one side of a handshake ended with.
type outcome struct {
	state tls.ConnectionState
	err   error
}

// shake runs a handshake. The client's outcome includes its first read, because
// a refusal of its certificate comes only then.
func shake(t testing.TB, clientCfg, serverCfg *tls.Config) (client, server outcome) {
	t.Helper()
	clientEnd, serverEnd := connect(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		_ = clientEnd.Close()
		_ = serverEnd.Close()
	})()
	done := make(chan outcome)
	go func() {
		conn := tls.Server(serverEnd, serverCfg)
		err := conn.Handshake()
		if err == nil {
			_, err = conn.Write([]byte("x"))
		}
		done <- outcome{conn.ConnectionState(), err}
		_ = serverEnd.Close()
	}()
	conn := tls.Client(clientEnd, clientCfg)
	err := conn.Handshake()
	if err == nil {
		_, err = io.ReadFull(conn, make([]byte, 1))
	}
	client = outcome{conn.ConnectionState(), err}
	_ = clientEnd.Close()
	return client, <-done
}

// connect returns the ends of a TCP connection. A net.Pipe would not do: without
// buffers, a refusal and the rest of what it refuses wait for each other.
func connect(t testing.TB) (client, server net.Conn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	client, err = net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err = listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return client, server
}

// foreign makes an SVID of another trust domain below ca's roots, with the
// bundle that lets it verify ca's own.
func foreign(t testing.TB, ca *identitytest.CA, id string) *svid.SVID {
	t.Helper()
	chain, key := ca.Issue(t, id)
	td := identity.MustParse(id).TrustDomain()
	s, err := svid.New(chain, key, identity.NewBundle(td, ca.Bundle().Certificates()))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// raw makes an SVID without the checks of svid.New, as a hostile peer would.
func raw(t testing.TB, ca *identitytest.CA, opts ...identitytest.Option) *svid.SVID {
	t.Helper()
	chain, key := ca.Issue(t, webID, opts...)
	return &svid.SVID{ID: web, Certificates: chain, PrivateKey: key, Bundle: ca.Bundle()}
}

func TestHandshake(t *testing.T) {
	ca := identitytest.NewCA(t, "td")
	below := ca.Intermediate(t).Intermediate(t)
	stranger := identitytest.NewCA(t, "td")
	future := identitytest.Validity(time.Now().Add(time.Hour), time.Now().Add(2*time.Hour))
	good := ca.SVID(t, apiID)
	tests := []struct {
		name           string
		client, server *svid.SVID
		expected       []identity.ID
		// Reasons of the two sides; empty for none. peer is whom the server saw.
		clientReason, serverReason string
		peer                       identity.ID
	}{
		{name: "good", client: ca.SVID(t, webID), server: good, expected: []identity.ID{api}, peer: web},
		{name: "intermediates", client: below.SVID(t, webID), server: below.SVID(t, apiID), expected: []identity.ID{api}, peer: web},
		{name: "second_expected", client: ca.SVID(t, webID), server: good, expected: []identity.ID{other, api}, peer: web},
		{name: "same_identity", client: good, server: good, expected: []identity.ID{api}, peer: api},

		{name: "other_server", client: ca.SVID(t, webID), server: good, expected: []identity.ID{other},
			clientReason: mtls.ReasonIdentityMismatch, serverReason: mtls.ReasonRefusedByPeer},
		{name: "nobody_expected", client: ca.SVID(t, webID), server: good,
			clientReason: mtls.ReasonIdentityMismatch, serverReason: mtls.ReasonRefusedByPeer},
		{name: "zero_expected", client: ca.SVID(t, webID), server: raw(t, ca, identitytest.URIs()), expected: []identity.ID{{}},
			clientReason: mtls.ReasonNoIdentity, serverReason: mtls.ReasonRefusedByPeer},
		{name: "server_unknown_authority", client: ca.SVID(t, webID), server: stranger.SVID(t, apiID), expected: []identity.ID{api},
			clientReason: mtls.ReasonUnknownAuthority, serverReason: mtls.ReasonRefusedByPeer},
		{name: "server_expired", client: ca.SVID(t, webID), server: ca.SVID(t, apiID, identitytest.Expired()), expected: []identity.ID{api},
			clientReason: mtls.ReasonExpired, serverReason: mtls.ReasonRefusedByPeer},
		{name: "server_not_yet_valid", client: ca.SVID(t, webID), server: ca.SVID(t, apiID, future), expected: []identity.ID{api},
			clientReason: mtls.ReasonNotYetValid, serverReason: mtls.ReasonRefusedByPeer},
		{name: "server_second_san", client: ca.SVID(t, webID), expected: []identity.ID{api},
			server:       ca.SVID(t, otherID, identitytest.URIs(otherID, apiID)),
			clientReason: mtls.ReasonIdentityMismatch, serverReason: mtls.ReasonRefusedByPeer},
		{name: "server_for_clients_only", client: ca.SVID(t, webID), expected: []identity.ID{api},
			server: ca.SVID(t, apiID, func(c *x509.Certificate) {
				c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
			}),
			clientReason: mtls.ReasonBadCertificate, serverReason: mtls.ReasonRefusedByPeer},

		{name: "client_unknown_authority", client: trusting(stranger.SVID(t, webID), ca), server: good, expected: []identity.ID{api},
			clientReason: mtls.ReasonRefusedByPeer, serverReason: mtls.ReasonUnknownAuthority},
		{name: "client_expired", client: ca.SVID(t, webID, identitytest.Expired()), server: good, expected: []identity.ID{api},
			clientReason: mtls.ReasonRefusedByPeer, serverReason: mtls.ReasonExpired},
		{name: "client_not_yet_valid", client: ca.SVID(t, webID, future), server: good, expected: []identity.ID{api},
			clientReason: mtls.ReasonRefusedByPeer, serverReason: mtls.ReasonNotYetValid},
		{name: "client_of_foreign_trust_domain", client: foreign(t, ca, "spiffe://elsewhere/ns/default/sa/web"), server: good, expected: []identity.ID{api},
			clientReason: mtls.ReasonRefusedByPeer, serverReason: mtls.ReasonWrongTrustDomain},
		{name: "client_without_identity", client: raw(t, ca, identitytest.URIs("spiffe://td/node")), server: good, expected: []identity.ID{api},
			clientReason: mtls.ReasonRefusedByPeer, serverReason: mtls.ReasonNoIdentity},
		{name: "client_is_ca", client: raw(t, ca, func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }), server: good, expected: []identity.ID{api},
			clientReason: mtls.ReasonRefusedByPeer, serverReason: mtls.ReasonBadCertificate},
		{name: "client_may_sign", client: raw(t, ca, func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }), server: good, expected: []identity.ID{api},
			clientReason: mtls.ReasonRefusedByPeer, serverReason: mtls.ReasonBadCertificate},
		{name: "client_may_sign_lists", client: raw(t, ca, func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign }), server: good, expected: []identity.ID{api},
			clientReason: mtls.ReasonRefusedByPeer, serverReason: mtls.ReasonBadCertificate},
		{name: "client_for_servers_only", server: good, expected: []identity.ID{api},
			client:       raw(t, ca, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }),
			clientReason: mtls.ReasonRefusedByPeer, serverReason: mtls.ReasonBadCertificate},
		{name: "client_without_intermediate", server: good, expected: []identity.ID{api},
			client:       leafOnly(below.SVID(t, webID)),
			clientReason: mtls.ReasonRefusedByPeer, serverReason: mtls.ReasonUnknownAuthority},

		// The SAN that is of the server's trust domain and the SAN that is
		// authorized must be the same one.
		{name: "client_first_san_counts", client: raw(t, ca, identitytest.URIs(webID, otherID)), server: good, expected: []identity.ID{api}, peer: web},
		{name: "client_foreign_san_first", client: raw(t, ca, identitytest.URIs("spiffe://elsewhere/ns/default/sa/web", webID)), server: good, expected: []identity.ID{api},
			clientReason: mtls.ReasonRefusedByPeer, serverReason: mtls.ReasonWrongTrustDomain},
		{name: "client_foreign_san_second", client: raw(t, ca, identitytest.URIs(webID, "spiffe://elsewhere/ns/default/sa/web")), server: good, expected: []identity.ID{api}, peer: web},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			client, server := shake(t, mtls.Client(tt.client, tt.expected, nil), mtls.Server(tt.server, nil))
			if got := mtls.Reason(client.err); got != tt.clientReason {
				t.Errorf("client: reason %q, want %q; error: %v", got, tt.clientReason, client.err)
			}
			if got := mtls.Reason(server.err); got != tt.serverReason {
				t.Errorf("server: reason %q, want %q; error: %v", got, tt.serverReason, server.err)
			}
			for side, err := range map[string]error{"client": client.err, "server": server.err} {
				if err != nil && strings.Contains(err.Error(), "\n") {
					t.Errorf("%s: error has more than one line: %q", side, err)
				}
			}
			if tt.serverReason != "" {
				return
			}
			if id, err := mtls.PeerID(server.state); err != nil || id != tt.peer {
				t.Errorf("server saw %v, error %v; want %v", id, err, tt.peer)
			}
			if id, err := mtls.PeerID(client.state); err != nil || id != api {
				t.Errorf("client saw %v, error %v; want %v", id, err, api)
			}
			checkState(t, client.state)
			checkState(t, server.state)
		})
	}
}

// trusting gives s the roots of ca.
func trusting(s *svid.SVID, ca *identitytest.CA) *svid.SVID {
	c := *s
	c.Bundle = ca.Bundle()
	return &c
}

func leafOnly(s *svid.SVID) *svid.SVID {
	c := *s
	c.Certificates = c.Certificates[:1]
	return &c
}

func checkState(t *testing.T, cs tls.ConnectionState) {
	t.Helper()
	switch {
	case cs.Version != tls.VersionTLS13:
		t.Errorf("version %s", tls.VersionName(cs.Version))
	case cs.NegotiatedProtocol != "h2":
		t.Errorf("protocol %q", cs.NegotiatedProtocol)
	case cs.ServerName != "":
		t.Errorf("server name %q was sent", cs.ServerName)
	case cs.CurveID != tls.X25519MLKEM768:
		t.Errorf("key exchange %s", cs.CurveID)
	case cs.HelloRetryRequest || cs.DidResume:
		t.Error("an extra round trip or a resumed session")
	}
}

func TestErrorsCarryBothIdentities(t *testing.T) {
	ca := identitytest.NewCA(t, "td")
	client, _ := shake(t, mtls.Client(ca.SVID(t, webID), []identity.ID{other, web}, nil), mtls.Server(ca.SVID(t, apiID), nil))
	mismatch, ok := errors.AsType[*mtls.IdentityMismatchError](client.err)
	if !ok || mismatch.Got != api || !slices.Equal(mismatch.Expected, []identity.ID{other, web}) {
		t.Errorf("got %v", client.err)
	}
	if want := "identity mismatch: peer is " + apiID + ", want " + otherID + " or " + webID; !strings.Contains(client.err.Error(), want) {
		t.Errorf("error %q does not contain %q", client.err, want)
	}

	_, server := shake(t, mtls.Client(foreign(t, ca, "spiffe://elsewhere/ns/a/sa/b"), []identity.ID{api}, nil), mtls.Server(ca.SVID(t, apiID), nil))
	domain, ok := errors.AsType[*mtls.TrustDomainError](server.err)
	if !ok || domain.Got.String() != "spiffe://elsewhere/ns/a/sa/b" || domain.Expected.String() != "td" {
		t.Errorf("got %v", server.err)
	}

	_, server = shake(t, mtls.Client(ca.SVID(t, webID, identitytest.Expired()), []identity.ID{api}, nil), mtls.Server(ca.SVID(t, apiID), nil))
	if want := "peer certificate claiming " + webID + ": expired: "; !strings.Contains(server.err.Error(), want) {
		t.Errorf("error %q does not contain %q", server.err, want)
	}
}

// TestOtherPeers lets the server meet clients that are not ours.
func TestOtherPeers(t *testing.T) {
	ca := identitytest.NewCA(t, "td")
	cert := ca.SVID(t, webID).TLSCertificate()
	tests := []struct {
		name                       string
		client                     *tls.Config
		serverReason, clientReason string
		alert                      string // what the client is told
	}{
		{"no_certificate", &tls.Config{NextProtos: []string{"h2"}}, mtls.ReasonNoCertificate, mtls.ReasonRefusedByPeer, "certificate required"},
		{"tls_1_2", &tls.Config{MaxVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}}, mtls.ReasonHandshake, mtls.ReasonRefusedByPeer, "protocol version not supported"},
		{"other_protocol", &tls.Config{NextProtos: []string{"spdy/3"}, Certificates: []tls.Certificate{cert}}, mtls.ReasonHandshake, mtls.ReasonRefusedByPeer, "no application protocol"},
		{"no_alpn", &tls.Config{Certificates: []tls.Certificate{cert}}, "", "", ""},
		// crypto/tls lets this pass without a protocol; HTTP/2's preface fails then.
		{"http_1_1_only", &tls.Config{NextProtos: []string{"http/1.1"}, Certificates: []tls.Certificate{cert}}, "", "", ""},
		{"p256_only", &tls.Config{CurvePreferences: []tls.CurveID{tls.CurveP256}, Certificates: []tls.Certificate{cert}}, "", "", ""},
		{"session_cache", &tls.Config{ClientSessionCache: tls.NewLRUClientSessionCache(1), ServerName: "api", Certificates: []tls.Certificate{cert}}, "", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.client.InsecureSkipVerify = true
			for range 2 { // the second might resume
				client, server := shake(t, tt.client, mtls.Server(ca.SVID(t, apiID), nil))
				if got := mtls.Reason(server.err); got != tt.serverReason {
					t.Errorf("server: reason %q, want %q; error: %v", got, tt.serverReason, server.err)
				}
				if got := mtls.Reason(client.err); got != tt.clientReason || tt.alert != "" && !strings.Contains(client.err.Error(), tt.alert) {
					t.Errorf("client: reason %q, error %v; want %q and %q", got, client.err, tt.clientReason, tt.alert)
				}
				if server.state.DidResume {
					t.Error("the session was resumed")
				}
			}
		})
	}
}

func TestPlaintextIsNotTLS(t *testing.T) {
	ca := identitytest.NewCA(t, "td")
	clientEnd, serverEnd := net.Pipe()
	defer func() { _ = serverEnd.Close() }()
	go func() {
		_, _ = io.WriteString(clientEnd, "GET / HTTP/1.1\r\n\r\n")
		_ = clientEnd.Close()
	}()
	err := tls.Server(serverEnd, mtls.Server(ca.SVID(t, apiID), nil)).Handshake()
	if got := mtls.Reason(err); got != mtls.ReasonNotTLS {
		t.Errorf("reason %q, error %v", got, err)
	}
}

// TestServerHidesItsRoots checks that the request for a certificate names no
// authority, and that the client presents its certificate whatever it names.
func TestServerHidesItsRoots(t *testing.T) {
	ca := identitytest.NewCA(t, "td")
	cert := ca.SVID(t, webID).TLSCertificate()
	var named int
	cfg := &tls.Config{InsecureSkipVerify: true, GetClientCertificate: func(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		named = len(info.AcceptableCAs)
		return &cert, nil
	}}
	if _, server := shake(t, cfg, mtls.Server(ca.SVID(t, apiID), nil)); server.err != nil || named != 0 {
		t.Errorf("%d authorities named, error %v", named, server.err)
	}

	picky := mtls.Server(ca.SVID(t, apiID), nil)
	picky.ClientCAs = identitytest.NewCA(t, "elsewhere").Bundle().Pool()
	if _, server := shake(t, mtls.Client(ca.SVID(t, webID), []identity.ID{api}, nil), picky); server.err != nil {
		t.Errorf("certificate held back: %v", server.err)
	}
}

// TestConfigsAreIndependent checks what callers rely on: a configuration is
// theirs to change, and expected may change afterwards.
func TestConfigsAreIndependent(t *testing.T) {
	ca := identitytest.NewCA(t, "td")
	s := ca.SVID(t, webID)
	first, second := mtls.Client(s, []identity.ID{api}, nil), mtls.Client(s, []identity.ID{api}, nil)
	first.KeyLogWriter = io.Discard
	first.NextProtos[0], first.CurvePreferences[0] = "x", 0
	if second.KeyLogWriter != nil || second.NextProtos[0] != "h2" || second.CurvePreferences[0] != tls.X25519MLKEM768 {
		t.Error("two configurations share what they hold")
	}
	expected := []identity.ID{api}
	cfg := mtls.Client(s, expected, nil)
	expected[0] = other
	if client, _ := shake(t, cfg, mtls.Server(ca.SVID(t, apiID), nil)); client.err != nil {
		t.Errorf("the caller's slice is the configuration's own: %v", client.err)
	}
}

func TestPeerIDWithoutCertificate(t *testing.T) {
	if id, err := mtls.PeerID(tls.ConnectionState{}); !errors.Is(err, mtls.ErrNoCertificate) || !id.IsZero() {
		t.Errorf("got %v, error %v", id, err)
	}
}

func TestReasonOfOtherErrors(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
		want string
	}{
		{"nil", nil, ""},
		{"eof", io.EOF, mtls.ReasonHandshake},
		{"timeout", context.DeadlineExceeded, mtls.ReasonTimeout},
		{"no_certificate", mtls.ErrNoCertificate, mtls.ReasonNoCertificate},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := mtls.Reason(tt.err); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// TestNoResumption: each connection is a handshake of its own, and no ticket follows it, which whoever goes on with the
// traffic secrets would have to count.
func TestNoResumption(t *testing.T) {
	root := identitytest.NewCA(t, "td")
	s := root.SVID(t, apiID)
	cache := tls.NewLRUClientSessionCache(4)
	for range 2 {
		client := mtls.Client(root.SVID(t, webID), []identity.ID{api}, nil)
		client.SessionTicketsDisabled, client.ClientSessionCache, client.ServerName = false, cache, "api"
		c, server := shake(t, client, mtls.Server(s, nil))
		if c.err != nil || server.err != nil || c.state.DidResume {
			t.Errorf("client %v, server %v, resumed %v", c.err, server.err, c.state.DidResume)
		}
		if session, ok := cache.Get("api"); ok {
			t.Errorf("the server gave a ticket: %v", session)
		}
	}
}
