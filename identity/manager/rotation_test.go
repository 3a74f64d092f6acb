package manager_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/ca/issuer"
	"github.com/culvert-mesh/culvert/identity/manager"
	"github.com/culvert-mesh/culvert/identity/mtls"
)

// TestRotationUnderTraffic uses real time, a real issuer and real sockets: new
// connections follow every renewal by asking the same manager, and a connection
// made with the first certificate lives past that certificate's end.
func TestRotationUnderTraffic(t *testing.T) {
	authority, err := issuer.New(idA.TrustDomain())
	if err != nil {
		t.Fatal(err)
	}
	const ttl = 3 * time.Second
	m := start(t, manager.Config{Source: authority.WithTTL(ttl)})
	m.Acquire(idA)
	m.Acquire(idB)
	address := echo(t, m)
	old := dial(t, m, address)
	first := old.ConnectionState().PeerCertificates[0]

	deadline := time.Now().Add(10 * ttl)
	seen := map[string]bool{}
	for len(seen) < 3 || time.Now().Before(first.NotAfter.Add(time.Second)) {
		if time.Now().After(deadline) {
			t.Fatalf("only %d certificates in %s", len(seen), 10*ttl)
		}
		conn := dial(t, m, address)
		ping(t, conn)
		ping(t, old)
		seen[conn.ConnectionState().PeerCertificates[0].SerialNumber.String()] = true
		_ = conn.Close()
		time.Sleep(20 * time.Millisecond)
	}
	_ = old.Close()
}

// echo serves as idB until the test ends.
func echo(t *testing.T, m *manager.Manager) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			raw, err := listener.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			go func() {
				defer func() { _ = raw.Close() }()
				s, err := m.Get(context.Background(), idB)
				if err != nil {
					t.Error(err)
					return
				}
				conn := tls.Server(raw, mtls.Server(s, nil))
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
	t.Cleanup(func() {
		_ = listener.Close()
		<-done
	})
	return listener.Addr().String()
}

// dial connects as idA.
func dial(t *testing.T, m *manager.Manager, address string) *tls.Conn {
	t.Helper()
	s := mustGet(t, m, idA)
	conn, err := tls.Dial("tcp", address, mtls.Client(s, []identity.ID{idB}, nil))
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func ping(t *testing.T, conn *tls.Conn) {
	t.Helper()
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
}
