package hbonetest

import (
	"crypto/tls"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// Server accepts HBONE connections for a test to script.
type Server struct {
	listener net.Listener
	config   *tls.Config
	settings []http2.Setting

	mu      sync.Mutex
	handle  func(p *Peer, stream uint32, h Header)
	changed chan struct{}
	peers   []*Peer
	errs    []error
	closed  bool
}

// Listen serves on addr until the test ends. Each connection announces the settings.
func Listen(t testing.TB, addr string, config *tls.Config, settings ...http2.Setting) *Server {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{listener: l, config: config, settings: settings, changed: make(chan struct{})}
	var wg sync.WaitGroup
	wg.Go(s.serve)
	t.Cleanup(func() {
		s.Close()
		wg.Wait()
	})
	return s
}

// Addr returns the address that is listened on.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Close stops listening and cuts all connections.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	peers := s.peers
	s.mu.Unlock()
	s.listener.Close()
	for _, p := range peers {
		p.Raw.Close()
	}
}

func (s *Server) serve() {
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return
		}
		p, err := start(conn, tls.Server(conn, s.config), false, s.settings, s.request)
		s.mu.Lock()
		if err != nil {
			s.errs = append(s.errs, err)
		} else {
			s.peers = append(s.peers, p)
		}
		if err != nil || s.closed {
			conn.Close()
		}
		close(s.changed)
		s.changed = make(chan struct{})
		s.mu.Unlock()
	}
}

// Handle has f called for each header block that comes from now on, in the order of arrival; f must not wait for
// anything on that connection.
func (s *Server) Handle(f func(p *Peer, stream uint32, h Header)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handle = f
}

func (s *Server) request(p *Peer, stream uint32, h Header) {
	s.mu.Lock()
	f := s.handle
	s.mu.Unlock()
	if f != nil {
		f(p, stream, h)
	}
}

// Peer waits for the n-th connection whose handshake succeeded, the first being 1.
func (s *Server) Peer(t testing.TB, n int) *Peer {
	t.Helper()
	var p *Peer
	s.until(t, "connection", func() bool {
		if len(s.peers) < n {
			return false
		}
		p = s.peers[n-1]
		return true
	})
	return p
}

// Peers returns how many connections there have been.
func (s *Server) Peers() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.peers)
}

// Failure waits for a handshake that failed and returns why.
func (s *Server) Failure(t testing.TB) error {
	t.Helper()
	var err error
	s.until(t, "failed handshake", func() bool {
		if len(s.errs) == 0 {
			return false
		}
		err = s.errs[0]
		return true
	})
	return err
}

func (s *Server) until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		s.mu.Lock()
		done, changed := ok(), s.changed
		s.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-timer.C:
			t.Fatalf("%s did not come", what)
		}
	}
}
