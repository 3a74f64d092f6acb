package main

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/culvert-mesh/culvert/identity/ca/server"
)

const (
	// maxCalls bounds the calls of one caller whose messages are read at a time.
	maxCalls = 16
	// maxConnections and maxConnectionsOfOne bound connections, in all and from one address. An agent has two or three.
	maxConnections      = 20_000
	maxConnectionsOfOne = 64
)

// guard registers unary services with a server that reads large messages for the sake of another service: it reads a
// message only for who has shown a token that counts, and of one caller only few at a time. gRPC itself would read it
// before anybody is asked. The services authenticate by found.
type guard struct {
	to           grpc.ServiceRegistrar
	authenticate func(ctx context.Context, token string) (server.Caller, error)

	mu    sync.Mutex
	calls map[server.Caller]int
}

func newGuard(to grpc.ServiceRegistrar, authenticate func(ctx context.Context, token string) (server.Caller, error)) *guard {
	return &guard{to: to, authenticate: authenticate, calls: make(map[server.Caller]int)}
}

// RegisterService implements grpc.ServiceRegistrar. On the wire a unary method is a stream with one message each way.
func (g *guard) RegisterService(desc *grpc.ServiceDesc, impl any) {
	guarded := *desc
	guarded.Methods = nil
	for _, m := range desc.Methods {
		guarded.Streams = append(guarded.Streams, grpc.StreamDesc{
			StreamName: m.MethodName, ServerStreams: true, ClientStreams: true,
			Handler: func(srv any, stream grpc.ServerStream) error {
				read := stream.RecvMsg
				caller, err := g.caller(stream.Context())
				ctx := context.WithValue(stream.Context(), findingKey{}, finding{caller, err})
				if err != nil {
					// The service gets an empty message, and refuses the caller in its own words.
					read = func(any) error { return nil }
				} else if !g.enter(caller) {
					return status.Error(codes.ResourceExhausted, "too many requests at a time")
				} else {
					defer g.leave(caller)
				}
				out, err := m.Handler(srv, ctx, read, nil)
				if err != nil {
					return err
				}
				return stream.SendMsg(out)
			},
		})
	}
	g.to.RegisterService(&guarded, impl)
}

func (g *guard) caller(ctx context.Context) (server.Caller, error) {
	token, err := server.Bearer(ctx)
	if err != nil {
		return server.Caller{}, err
	}
	return g.authenticate(ctx, token)
}

// finding is what a guard found out about a caller; a context has it under findingKey.
type (
	finding struct {
		caller server.Caller
		err    error
	}
	findingKey struct{}
)

// found returns who the guard found to be calling. To authenticate once more could cost a second review of the token, with
// another outcome: then what was not read would be taken for what was sent.
func found(ctx context.Context, _ string) (server.Caller, error) {
	f, ok := ctx.Value(findingKey{}).(finding)
	if !ok {
		return server.Caller{}, errors.New("no guard has let the caller in")
	}
	return f.caller, f.err
}

func (g *guard) enter(caller server.Caller) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.calls[caller] >= maxCalls {
		return false
	}
	g.calls[caller]++
	return true
}

func (g *guard) leave(caller server.Caller) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.calls[caller]--; g.calls[caller] == 0 {
		delete(g.calls, caller)
	}
}

// crowd is a listener that bounds connections, in all and from one address, so that one pod cannot take what the others
// need. What is too much is closed at once.
type crowd struct {
	net.Listener
	max, maxOfOne int

	mu  sync.Mutex
	all int
	of  map[netip.Addr]int
}

func newCrowd(l net.Listener, most, mostOfOne int) *crowd {
	return &crowd{Listener: l, max: most, maxOfOne: mostOfOne, of: make(map[netip.Addr]int)}
}

// Accept implements net.Listener.
func (c *crowd) Accept() (net.Conn, error) {
	for {
		conn, err := c.Listener.Accept()
		if err != nil {
			return nil, err
		}
		var from netip.Addr
		if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
			from = a.AddrPort().Addr().Unmap()
		}
		if !c.enter(from) {
			_ = conn.Close()
			continue
		}
		return &member{Conn: conn, leave: sync.OnceFunc(func() { c.leave(from) })}, nil
	}
}

func (c *crowd) enter(from netip.Addr) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all >= c.max || c.of[from] >= c.maxOfOne {
		return false
	}
	c.all++
	c.of[from]++
	return true
}

func (c *crowd) leave(from netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all--
	if c.of[from]--; c.of[from] == 0 {
		delete(c.of, from)
	}
}

// member is a connection that is counted.
type member struct {
	net.Conn
	leave func()
}

// Close implements net.Conn.
func (m *member) Close() error {
	m.leave()
	return m.Conn.Close()
}
