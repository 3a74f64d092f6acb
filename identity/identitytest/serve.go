package identitytest

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// GetCertificate chooses the certificate of a TLS server; see tls.Config.
type GetCertificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)

// ServeGRPC serves gRPC services over TLS on a socket of the loopback interface
// until the test ends, and returns host:port to dial.
func ServeGRPC(t testing.TB, certificate GetCertificate, register ...func(grpc.ServiceRegistrar)) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: certificate})))
	for _, fn := range register {
		fn(server)
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(listener) })
	t.Cleanup(func() {
		server.Stop()
		serving.Wait()
	})
	return listener.Addr().String()
}

// CalledFrom is the context of a gRPC method that somebody at the address has
// called.
func CalledFrom(ctx context.Context, from netip.Addr) context.Context {
	return peer.NewContext(ctx, &peer.Peer{Addr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 4711))})
}
