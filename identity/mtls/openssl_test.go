package mtls_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/identitytest"
	"github.com/culvert-mesh/culvert/identity/mtls"
	"github.com/culvert-mesh/culvert/identity/svid"
)

// openssl returns the arguments that present s, and skips without the program.
func openssl(t *testing.T, s *svid.SVID) []string {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("openssl is not installed")
	}
	dir := t.TempDir()
	file := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		write(t, path, content)
		return path
	}
	return []string{
		"-cert", file("leaf.pem", identitytest.CertificatesPEM(s.Leaf())),
		"-cert_chain", file("chain.pem", identitytest.CertificatesPEM(s.Certificates[1:]...)),
		"-key", file("key.pem", identitytest.KeyPEM(t, s.PrivateKey)),
		"-CAfile", file("roots.pem", identitytest.CertificatesPEM(s.Bundle.Certificates()...)),
		"-alpn", "h2", "-no_ticket",
	}
}

var suites = []struct {
	name  string
	suite uint16
}{
	{"TLS_AES_128_GCM_SHA256", tls.TLS_AES_128_GCM_SHA256},
	{"TLS_AES_256_GCM_SHA384", tls.TLS_AES_256_GCM_SHA384},
}

// TestOpenSSLClient lets openssl dial our server.
func TestOpenSSLClient(t *testing.T) {
	ca := identitytest.NewCA(t, "td")
	server, client := ca.Intermediate(t).SVID(t, apiID), ca.Intermediate(t).SVID(t, webID)
	for _, suite := range suites {
		for _, group := range []string{"X25519", "P-256", "P-384:X25519"} { // the last needs a second round
			t.Run(suite.name+"/"+strings.ReplaceAll(group, ":", "_"), func(t *testing.T) {
				args := append(openssl(t, client), "-ciphersuites", suite.name, "-groups", group)
				out, state, err := sClient(t, mtls.Server(server, nil), args)
				if err != nil || !strings.Contains(out, "pong") {
					t.Fatalf("error %v; openssl printed:\n%s", err, out)
				}
				if id, err := mtls.PeerID(state); err != nil || id != web {
					t.Errorf("saw %v, error %v", id, err)
				}
				if state.CipherSuite != suite.suite || state.NegotiatedProtocol != "h2" {
					t.Errorf("suite %s, protocol %q", tls.CipherSuiteName(state.CipherSuite), state.NegotiatedProtocol)
				}
			})
		}
	}
	t.Run("unknown_authority", func(t *testing.T) {
		stranger := identitytest.NewCA(t, "td").Intermediate(t).SVID(t, webID)
		out, _, err := sClient(t, mtls.Server(server, nil), openssl(t, trusting(stranger, ca)))
		if mtls.Reason(err) != mtls.ReasonUnknownAuthority {
			t.Errorf("error %v", err)
		}
		if !strings.Contains(out, "alert bad certificate") {
			t.Errorf("openssl printed:\n%s", out)
		}
	})
	t.Run("no_certificate", func(t *testing.T) {
		args := openssl(t, client)
		out, _, err := sClient(t, mtls.Server(server, nil), args[6:]) // without certificate, chain and key
		if mtls.Reason(err) != mtls.ReasonNoCertificate {
			t.Errorf("error %v", err)
		}
		if !strings.Contains(out, "alert certificate required") {
			t.Errorf("openssl printed:\n%s", out)
		}
	})
}

// sClient serves one connection of openssl s_client, which says ping, and
// returns what it printed and how it went on our side.
func sClient(t *testing.T, cfg *tls.Config, args []string) (string, tls.ConnectionState, error) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	args = append([]string{"s_client", "-connect", listener.Addr().String(), "-noservername", "-quiet", "-verify_return_error"}, args...)
	cmd := exec.CommandContext(ctx, "openssl", args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.Stdin = &out, &out, strings.NewReader("ping\n")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := listener.(*net.TCPListener).SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	raw, err := listener.Accept()
	if err != nil {
		t.Fatalf("%v; openssl printed:\n%s", err, out.String())
	}
	conn := tls.Server(raw, cfg)
	err = conn.HandshakeContext(ctx)
	if err == nil {
		if _, err = io.ReadFull(conn, make([]byte, 5)); err == nil {
			_, err = io.WriteString(conn, "pong\n")
		}
	}
	state := conn.ConnectionState()
	_ = conn.Close()
	_ = cmd.Wait() // its exit code tells no more than what it printed
	return out.String(), state, err
}

// TestOpenSSLServer lets our client dial openssl.
func TestOpenSSLServer(t *testing.T) {
	ca := identitytest.NewCA(t, "td")
	server, client := ca.Intermediate(t).SVID(t, apiID), ca.Intermediate(t).SVID(t, webID)
	for _, suite := range suites {
		t.Run(suite.name, func(t *testing.T) {
			args := append(openssl(t, server), "-ciphersuites", suite.name, "-groups", "X25519")
			conn, err := tls.Dial("tcp", sServer(t, args), mtls.Client(client, []identity.ID{api}, nil))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			if _, err := io.WriteString(conn, "ping\n"); err != nil {
				t.Fatal(err)
			}
			answer, err := bufio.NewReader(conn).ReadString('\n')
			if err != nil || answer != "gnip\n" { // s_server -rev turns it round
				t.Fatalf("got %q, error %v", answer, err)
			}
			state := conn.ConnectionState()
			if state.CipherSuite != suite.suite || state.CurveID != tls.X25519 || state.HelloRetryRequest {
				t.Errorf("suite %s, key exchange %s, retry %v", tls.CipherSuiteName(state.CipherSuite), state.CurveID, state.HelloRetryRequest)
			}
		})
	}
	t.Run("identity_mismatch", func(t *testing.T) {
		_, err := tls.Dial("tcp", sServer(t, openssl(t, server)), mtls.Client(client, []identity.ID{other}, nil))
		if mtls.Reason(err) != mtls.ReasonIdentityMismatch {
			t.Errorf("error %v", err)
		}
	})
}

// sServer starts openssl s_server, which demands a certificate, and returns its
// address.
func sServer(t *testing.T, args []string) string {
	t.Helper()
	args = append([]string{"s_server", "-accept", "127.0.0.1:0", "-rev", "-tls1_3", "-Verify", "5", "-verify_return_error"}, args...)
	cmd := exec.CommandContext(t.Context(), "openssl", args...)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		if address, ok := strings.CutPrefix(lines.Text(), "ACCEPT "); ok {
			go func() { // keeps the pipe from filling up
				_, _ = io.Copy(io.Discard, stdout)
			}()
			return address
		}
	}
	t.Fatal("openssl s_server did not say where it listens")
	return ""
}
