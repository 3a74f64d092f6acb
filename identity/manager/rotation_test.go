package manager_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/ca/issuer"
	"github.com/culvert-mesh/culvert/identity/manager"
	"github.com/culvert-mesh/culvert/identity/mtls"
)

// TestRotationUnderTraffic, with a real issuer and real TLS: new connections follow
// every renewal by asking the same manager, and a connection made with the first
// certificate lives past that certificate's end.
func TestRotationUnderTraffic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		authority, err := issuer.New(idA.TrustDomain())
		if err != nil {
			t.Fatal(err)
		}
		m := start(t, manager.Config{Source: authority.WithTTL(time.Minute)})
		m.Acquire(idA)
		m.Acquire(idB)
		old := dial(t, m)
		first := old.ConnectionState().PeerCertificates[0]
		seen := map[string]bool{}
		for time.Now().Before(first.NotAfter.Add(time.Minute)) {
			conn := dial(t, m)
			ping(t, conn)
			ping(t, old)
			seen[conn.ConnectionState().PeerCertificates[0].SerialNumber.String()] = true
			_ = conn.Close()
			time.Sleep(time.Second)
		}
		if len(seen) < 4 || len(seen) > 6 { // renewed after half of its life
			t.Errorf("%d certificates in two minutes", len(seen))
		}
		_ = old.Close()
	})
}

// dial connects as idA to one who serves as idB.
func dial(t *testing.T, m *manager.Manager) *tls.Conn {
	t.Helper()
	near, far := net.Pipe()
	go func() {
		defer func() { _ = far.Close() }()
		s, err := m.Get(context.Background(), idB)
		if err != nil {
			t.Error(err)
			return
		}
		conn := tls.Server(far, mtls.Server(s, nil))
		_, _ = io.Copy(conn, conn)
	}()
	conn := tls.Client(near, mtls.Client(mustGet(t, m, idA), []identity.ID{idB}, nil))
	if err := conn.Handshake(); err != nil {
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
