package main

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"istio.io/api/security/v1alpha1"

	"github.com/culvert-mesh/culvert/identity/ca/server"
)

// echo is a service that tells the size of the request, once it is let to.
type echo struct {
	v1alpha1.UnimplementedIstioCertificateServiceServer
	entered chan int
	release chan struct{}
}

func (e *echo) CreateCertificate(ctx context.Context, in *v1alpha1.IstioCertificateRequest) (*v1alpha1.IstioCertificateResponse, error) {
	e.entered <- len(in.GetCsr())
	select {
	case <-e.release:
	case <-ctx.Done():
	}
	return &v1alpha1.IstioCertificateResponse{CertChain: []string{in.GetCsr()}}, nil
}

func guarded(t *testing.T, e *echo) v1alpha1.IstioCertificateServiceClient {
	t.Helper()
	return guardedBy(t, e, func(_ context.Context, token string) (server.Caller, error) {
		if token == "bad" {
			return server.Caller{}, errors.New("no such token")
		}
		return server.Caller{PodName: token}, nil
	})
}

func guardedBy(t *testing.T, service v1alpha1.IstioCertificateServiceServer, authenticate func(context.Context, string) (server.Caller, error)) v1alpha1.IstioCertificateServiceClient {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(grpc.MaxRecvMsgSize(32 << 20))
	v1alpha1.RegisterIstioCertificateServiceServer(newGuard(g, authenticate), service)
	var wg sync.WaitGroup
	wg.Go(func() { _ = g.Serve(l) })
	conn, err := grpc.NewClient("passthrough:///"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		g.Stop()
		wg.Wait()
	})
	return v1alpha1.NewIstioCertificateServiceClient(conn)
}

func as(token string) context.Context {
	return metadata.AppendToOutgoingContext(context.Background(), "authorization", "Bearer "+token)
}

// TestGuardReadsNothingOfStrangers: the service answers them all the same, but to an empty message.
func TestGuardReadsNothingOfStrangers(t *testing.T) {
	e := &echo{entered: make(chan int, 1), release: make(chan struct{})}
	close(e.release)
	client := guarded(t, e)
	large := &v1alpha1.IstioCertificateRequest{Csr: string(make([]byte, 8<<20))}
	for _, ctx := range []context.Context{as("bad"), context.Background()} {
		if _, err := client.CreateCertificate(ctx, large); err != nil && status.Code(err) != codes.Unavailable {
			t.Fatal(err)
		}
		if n := <-e.entered; n != 0 {
			t.Errorf("the service saw %d octets of a stranger", n)
		}
	}
	in := &v1alpha1.IstioCertificateRequest{Csr: "request"}
	out, err := client.CreateCertificate(as("good"), in)
	if err != nil {
		t.Fatal(err)
	}
	if n := <-e.entered; n != len(in.Csr) || len(out.GetCertChain()) != 1 || out.GetCertChain()[0] != in.Csr {
		t.Errorf("the service saw %d octets and answered %v", n, out)
	}
}

// asking is a service that tells what it finds out about the caller.
type asking struct {
	v1alpha1.UnimplementedIstioCertificateServiceServer
	told chan error
}

func (a *asking) CreateCertificate(ctx context.Context, _ *v1alpha1.IstioCertificateRequest) (*v1alpha1.IstioCertificateResponse, error) {
	_, err := found(ctx, "")
	a.told <- err
	return nil, status.Error(codes.Unavailable, "later")
}

// TestGuardAsksOnce: what the guard has found out holds for the service, also if another answer could be had by now.
func TestGuardAsksOnce(t *testing.T) {
	a := &asking{told: make(chan error, 1)}
	asked := 0
	client := guardedBy(t, a, func(ctx context.Context, _ string) (server.Caller, error) {
		if got := server.Address(ctx); got != "127.0.0.1" {
			t.Errorf("asked for a caller at %q", got)
		}
		if asked++; asked == 1 {
			return server.Caller{}, server.ErrUnavailable
		}
		return server.Caller{PodName: "agent"}, nil
	})
	in := &v1alpha1.IstioCertificateRequest{Csr: "request"}
	for n, want := range []error{server.ErrUnavailable, nil} {
		_, _ = client.CreateCertificate(as("token"), in)
		if err := <-a.told; !errors.Is(err, want) || asked != n+1 {
			t.Errorf("the service finds %v after %d questions, want %v", err, asked, want)
		}
	}
	if _, err := found(t.Context(), "token"); err == nil {
		t.Error("somebody is let in without a guard")
	}
}

// TestGuardBoundsCalls: of one caller only some calls are read at a time; others are not held up.
func TestGuardBoundsCalls(t *testing.T) {
	e := &echo{entered: make(chan int, maxCalls+1), release: make(chan struct{})}
	client := guarded(t, e)
	in := &v1alpha1.IstioCertificateRequest{Csr: "request"}
	var wg sync.WaitGroup
	for range maxCalls {
		wg.Go(func() {
			if _, err := client.CreateCertificate(as("greedy"), in); err != nil {
				t.Error(err)
			}
		})
	}
	for range maxCalls {
		<-e.entered
	}
	if _, err := client.CreateCertificate(as("greedy"), in); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("one call too many: %v", err)
	}
	wg.Go(func() {
		if _, err := client.CreateCertificate(as("modest"), in); err != nil {
			t.Error(err)
		}
	})
	<-e.entered
	close(e.release)
	wg.Wait()
	if _, err := client.CreateCertificate(as("greedy"), in); err != nil {
		t.Errorf("after all have left: %v", err)
	}
}

// TestCrowd: connections beyond the limit of an address are closed, and room is made again.
func TestCrowd(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := newCrowd(l, 3, 2)
	defer c.Close()
	accepted := make(chan net.Conn, 8)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := c.Accept()
			if err != nil {
				return
			}
			accepted <- conn
		}
	})
	dialFrom := func(address string) net.Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
		conn, err := d.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	dial := func() net.Conn { t.Helper(); return dialFrom("127.0.0.1") }
	dial()
	first := <-accepted
	dial()
	second := <-accepted
	if _, err := dial().Read(make([]byte, 1)); err == nil {
		t.Error("the third connection is served")
	}
	first.Close()
	first.Close() // twice is once
	dial()
	third := <-accepted
	if _, err := dial().Read(make([]byte, 1)); err == nil {
		t.Error("a connection too many is served")
	}
	dialFrom("127.0.0.2")
	fourth := <-accepted
	if _, err := dialFrom("127.0.0.3").Read(make([]byte, 1)); err == nil {
		t.Error("a connection too many in all is served")
	}
	second.Close()
	third.Close()
	fourth.Close()
	c.Close()
	wg.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all != 0 || len(c.of) != 0 {
		t.Errorf("%d connections are counted after all have left: %v", c.all, c.of)
	}
}
