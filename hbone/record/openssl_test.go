package record_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/hbone/record"
)

// opensslSuites are openssl's names; crypto/tls as a server always picks AES-128, so AES-256 needs a peer that offers
// nothing else.
var opensslSuites = []string{"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384"}

func openssl(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("openssl")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("openssl is missing")
		}
		t.Skip("needs the openssl program")
	}
	return path
}

// tool is a running openssl with its output.
type tool struct {
	t     *testing.T
	stdin io.WriteCloser
	mu    sync.Mutex
	out   bytes.Buffer
	more  chan struct{}
}

func (p *tool) Write(b []byte) (int, error) {
	p.mu.Lock()
	p.out.Write(b)
	p.mu.Unlock()
	select {
	case p.more <- struct{}{}:
	default:
	}
	return len(b), nil
}

// waitFor returns the output up to and including text, and forgets it.
func (p *tool) waitFor(text string) string {
	p.t.Helper()
	limit := time.After(30 * time.Second)
	for {
		p.mu.Lock()
		s := p.out.String()
		at := strings.Index(s, text)
		if at >= 0 {
			s = s[:at+len(text)]
			p.out.Next(len(s))
		}
		p.mu.Unlock()
		if at >= 0 {
			return s
		}
		select {
		case <-p.more:
		case <-limit:
			p.t.Fatalf("openssl does not print %q, only:\n%s", text, s)
		}
	}
}

func (p *tool) command(line string) {
	p.t.Helper()
	if _, err := io.WriteString(p.stdin, line); err != nil {
		p.t.Fatal(err)
	}
}

func start(t *testing.T, args ...string) *tool {
	t.Helper()
	p := &tool{t: t, more: make(chan struct{}, 1)}
	cmd := exec.Command(openssl(t), args...)
	cmd.Stdout, cmd.Stderr = p, p
	var err error
	if p.stdin, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.stdin.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	return p
}

// opensslServer starts s_server and connects our end to it as the client.
func opensslServer(t *testing.T, suite string) (*link, *tool) {
	t.Helper()
	cert := certificate(t)
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "peer.pem")
	text := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...)
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	p := start(t, "s_server", "-accept", "127.0.0.1:0", "-cert", file, "-tls1_3", "-ciphersuites", suite, "-alpn", "h2")
	p.waitFor("ACCEPT ")
	addr, err := bufio.NewReader(strings.NewReader(p.waitFor("\n"))).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	raw, err := net.Dial("tcp", strings.TrimSpace(addr))
	if err != nil {
		t.Fatal(err)
	}
	raw.SetDeadline(time.Now().Add(30 * time.Second))
	t.Cleanup(func() { raw.Close() })
	l := takeOver(t, raw, false, clientConfig())
	return l, p
}

// opensslClient starts s_client and accepts it as the server.
func opensslClient(t *testing.T, suite string) (*link, *tool) {
	t.Helper()
	openssl(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	p := start(t, "s_client", "-connect", ln.Addr().String(), "-tls1_3", "-ciphersuites", suite, "-alpn", "h2", "-noservername")
	ln.(*net.TCPListener).SetDeadline(time.Now().Add(30 * time.Second))
	raw, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	raw.SetDeadline(time.Now().Add(30 * time.Second))
	t.Cleanup(func() { raw.Close() })
	l := takeOver(t, raw, true, serverConfig(t))
	p.waitFor("Verify return code") // commands are read from here on
	return l, p
}

func TestOpenSSL(t *testing.T) {
	for _, peer := range []struct {
		name string
		dial func(*testing.T, string) (*link, *tool)
	}{{"s_server", opensslServer}, {"s_client", opensslClient}} {
		for _, suite := range opensslSuites {
			t.Run(peer.name+"/"+suite, func(t *testing.T) {
				l, p := peer.dial(t, suite)
				if got := tls.CipherSuiteName(l.conn.State().Suite); got != suite {
					t.Fatalf("suite is %s", got)
				}
				talk(t, l, p, 'a')
				if peer.name == "s_server" && l.conn.State().ReadSeq < 3 {
					t.Errorf("only %d records read: the two tickets are missing", l.conn.State().ReadSeq)
				}

				// "K" asks for our update too, "k" does not.
				for i, command := range []string{"k\n", "K\n", "K\n", "k\n"} {
					before := l.conn.State().ReadSecret
					p.command(command)
					for bytes.Equal(before, l.conn.State().ReadSecret) {
						if data, err := l.next(); err != nil || len(data) > 0 {
							t.Fatalf("instead of KeyUpdate: %q, %v", data, err)
						}
					}
					talk(t, l, p, byte('b'+i))
					if due := l.conn.KeyUpdateDue(); due != (command == "K\n") {
						t.Errorf("behind %q an answer is due: %v", command, due)
					}
					if l.conn.KeyUpdateDue() {
						update(t, l, false)
					}
					talk(t, l, p, byte('h'+i))
				}
				update(t, l, false)
				talk(t, l, p, 'p')
				before := l.conn.State().ReadSecret
				update(t, l, true)
				talk(t, l, p, 'q')
				if bytes.Equal(before, l.conn.State().ReadSecret) {
					t.Error("openssl did not answer our request")
				}

				if peer.name == "s_client" {
					p.command("Q\n")
				} else { // s_server's Q only closes the socket
					l.write(l.conn.AppendAlert(nil, record.AlertCloseNotify))
				}
				for {
					data, err := l.next()
					if err == io.EOF {
						break
					}
					if err != nil {
						t.Fatalf("instead of close_notify: %v, %q", err, data)
					}
				}
			})
		}
	}
}

func update(t *testing.T, l *link, request bool) {
	t.Helper()
	rec, err := l.conn.AppendKeyUpdate(nil, request)
	if err != nil {
		t.Fatal(err)
	}
	l.write(rec)
}

// talk sends a line each way.
func talk(t *testing.T, l *link, p *tool, mark byte) {
	t.Helper()
	ours, theirs := "<ours "+string(mark)+">", "<theirs "+string(mark)+">\n"
	l.send([]byte(ours + "\n"))
	p.waitFor(ours)
	p.command(theirs)
	if got := l.read(len(theirs)); string(got) != theirs {
		t.Fatalf("read %q, want %q", got, theirs)
	}
}

// TestOpenSSLRefusesTamperedRecord reads openssl's alert.
func TestOpenSSLRefusesTamperedRecord(t *testing.T) {
	for _, suite := range opensslSuites {
		t.Run(suite, func(t *testing.T) {
			l, p := opensslServer(t, suite)
			talk(t, l, p, 'a')
			rec := seal(l.conn, []byte("x"))
			rec[7] ^= 1
			l.write(rec)
			_, err := l.next()
			wantRemote(t, err, record.AlertBadRecordMAC)
		})
	}
}
