package mtls_test

import (
	"crypto/tls"
	"io"
	"testing"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/identitytest"
	"github.com/culvert-mesh/culvert/identity/mtls"
)

// BenchmarkConfig measures what a connection pays for a configuration of its own.
func BenchmarkConfig(b *testing.B) {
	ca := identitytest.NewCA(b, "td")
	s, expected := ca.SVID(b, webID), []identity.ID{api}
	b.Run("server", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_ = mtls.Server(s, nil)
		}
	})
	b.Run("client", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_ = mtls.Client(s, expected, nil)
		}
	})
}

// BenchmarkHandshake measures one handshake with both sides in the process, for
// the key exchanges that peers may bring about. retry is the one with a
// HelloRetryRequest.
func BenchmarkHandshake(b *testing.B) {
	ca := identitytest.NewCA(b, "td")
	web, apiSVID := ca.SVID(b, webID), ca.SVID(b, apiID)
	for _, bench := range []struct {
		name   string
		client []tls.CurveID
		server []tls.CurveID
	}{
		{"x25519mlkem768", nil, nil},
		{"x25519", []tls.CurveID{tls.X25519}, nil},
		{"p256", []tls.CurveID{tls.CurveP256}, nil},
		// The client's only share is X25519's, the server insists on P-256.
		{"retry", []tls.CurveID{tls.X25519, tls.CurveP256}, []tls.CurveID{tls.CurveP256}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				client, server := mtls.Client(web, []identity.ID{api}, nil), mtls.Server(apiSVID, nil)
				if bench.client != nil {
					client.CurvePreferences = bench.client
				}
				if bench.server != nil {
					server.CurvePreferences = bench.server
				}
				handshake(b, client, server)
			}
		})
	}
}

func handshake(b *testing.B, clientCfg, serverCfg *tls.Config) {
	b.Helper()
	clientEnd, serverEnd := connect(b)
	done := make(chan error, 1)
	go func() {
		conn := tls.Server(serverEnd, serverCfg)
		_, err := conn.Write([]byte("x"))
		done <- err
		_ = serverEnd.Close()
	}()
	conn := tls.Client(clientEnd, clientCfg)
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		b.Fatal(err)
	}
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	_ = clientEnd.Close()
}
