package handoff

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/redirect/netns"
)

// Handler does what is asked. Its methods are called concurrently; ctx ends with the
// server.
type Handler interface {
	// Add enrols a pod and returns when that is done or has failed once. It owns
	// ns. Adding what is there already is no error.
	Add(ctx context.Context, pod Pod, ns *netns.NS) error
	// Remove takes a pod out and returns when that is done. Removing what is not
	// there is no error.
	Remove(ctx context.Context, uid string) error
	// List returns all pods.
	List() []Status
}

// Config describes a Server.
type Config struct {
	// Path of the socket; required. Its directory is made, and belongs to this
	// socket alone: its mode is set to 0700.
	Path string
	// Handler is required.
	Handler Handler
	// Patient leaves a path that another server serves to that one, until it ends or Take is called.
	Patient bool
	// AllowUID says whose requests are taken. nil allows root and the user that
	// the server runs as.
	AllowUID func(uid uint32) bool
	// MaxClients is how many connections are served at once; more wait to be
	// accepted. Zero means 64.
	MaxClients int
	// IdleTimeout ends a connection that asks nothing. Zero means one minute.
	IdleTimeout time.Duration
	// Interval between looking whether the path was left by a successor. Zero means
	// one second.
	Interval time.Duration
	// Logger receives refusals, and what happens to the path. nil discards.
	Logger *slog.Logger
}

// acceptPause lies between two attempts to accept while that fails.
const acceptPause = 50 * time.Millisecond

// Server serves the hand-off socket.
type Server struct {
	cfg   Config
	bound chan struct{} // closed with the first listener, or by Close

	mu       sync.Mutex
	listener *net.UnixListener // nil while a Patient server waits
	inode    uint64            // of the listener's file
	closed   bool
}

// Listen opens the socket, at once and for whoever comes; Run serves it. A socket of
// a predecessor is replaced in one step, without a moment in which connecting fails;
// see Config.Patient for when.
func Listen(cfg Config) (*Server, error) {
	if cfg.Path == "" || cfg.Handler == nil {
		return nil, errors.New("listen for hand-offs: path and handler are required")
	}
	if cfg.AllowUID == nil {
		own := uint32(os.Geteuid())
		cfg.AllowUID = func(uid uint32) bool { return uid == 0 || uid == own }
	}
	if cfg.MaxClients == 0 {
		cfg.MaxClients = 64
	}
	if cfg.IdleTimeout == 0 {
		cfg.IdleTimeout = time.Minute
	}
	if cfg.Interval == 0 {
		cfg.Interval = time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg, bound: make(chan struct{})}
	wanted := func() bool { return true }
	if cfg.Patient {
		wanted = s.left
	}
	if _, err := s.bind(wanted); err != nil {
		return nil, fmt.Errorf("listen for hand-offs at %s: %w", cfg.Path, err)
	}
	return s, nil
}

// Take makes the path lead here, whoever serves it, if it does not yet.
func (s *Server) Take() error {
	_, err := s.bind(func() bool {
		_, ours := s.at()
		return !ours
	})
	if err != nil {
		return fmt.Errorf("take hand-off socket %s: %w", s.cfg.Path, err)
	}
	return nil
}

// Run serves until ctx ends and returns when all connections are closed: nil then,
// net.ErrClosed if Close came first. It removes the socket, unless a successor has
// replaced it. When a successor ends before (its upgrade was rolled back, or it was
// killed), the path is taken back at the next Config.Interval. Running out of
// descriptors only makes clients wait.
func (s *Server) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	wg.Go(func() { s.keep(ctx) })
	select {
	case <-s.bound:
	case <-ctx.Done():
		return s.Close()
	}
	slots := make(chan struct{}, s.cfg.MaxClients)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return s.Close()
		}
		c, err := s.accept(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return s.Close()
			}
			return fmt.Errorf("accept hand-off connection: %w", err)
		}
		wg.Go(func() {
			defer func() { <-slots }()
			s.serve(ctx, c)
		})
	}
}

// accept returns the next connection, or an error when there will be none.
func (s *Server) accept(ctx context.Context) (*net.UnixConn, error) {
	said := false
	for {
		l := s.current()
		if l == nil { // closed before there was one
			return nil, net.ErrClosed
		}
		c, err := l.AcceptUnix()
		if err == nil {
			return c, nil
		}
		if errors.Is(err, net.ErrClosed) {
			if s.current() == l {
				return nil, err
			}
			continue // the path was taken back with another one
		}
		if !said {
			s.cfg.Logger.Warn("hand-off connections cannot be accepted, trying on", "error", err)
			said = true
		}
		pause := time.NewTimer(acceptPause)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return nil, context.Cause(ctx)
		}
	}
}

// serve answers the requests of one connection, one after the other.
func (s *Server) serve(ctx context.Context, c *net.UnixConn) {
	defer func() { _ = c.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	refused := s.authorize(c)
	for {
		_ = c.SetReadDeadline(time.Now().Add(s.cfg.IdleTimeout))
		b, fds, err := receive(c, MaxRequest)
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil {
				s.cfg.Logger.Warn("hand-off connection failed", "error", err)
				_ = s.send(c, response{Version: Version, Error: bounded(err.Error())})
			}
			return
		}
		if refused != nil { // said now because a peer that still writes would not get it
			closeAll(fds)
			s.cfg.Logger.Warn("hand-off refused", "error", refused)
			_ = s.send(c, response{Version: Version, Error: refused.Error()})
			return
		}
		for _, r := range s.answer(ctx, b, fds) {
			if err := s.send(c, r); err != nil {
				return
			}
		}
	}
}

func (s *Server) authorize(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	ctlErr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(ctlErr, err); err != nil {
		return fmt.Errorf("find out who asks: %w", err)
	}
	if !s.cfg.AllowUID(cred.Uid) {
		return fmt.Errorf("user %d may not hand over pods", cred.Uid)
	}
	return nil
}

// answer does what one message asks. It owns fds.
func (s *Server) answer(ctx context.Context, b []byte, fds []int) []response {
	r, err := parseRequest(b)
	if err == nil {
		err = r.wants(len(fds))
	}
	if err != nil {
		closeAll(fds)
		s.cfg.Logger.Warn("hand-off request refused", "error", err)
		return failure(err)
	}
	switch r.Op {
	case opAdd:
		ns, err := netns.FromFD(fds[0])
		if err == nil {
			err = s.cfg.Handler.Add(ctx, *r.Pod, ns)
		}
		return failure(err)
	case opRemove:
		return failure(s.cfg.Handler.Remove(ctx, r.UID))
	case opCNIAdd, opCNIDel, opCNICheck, opCNIStatus:
		return s.answerCNI(ctx, r, fds)
	}
	pods := s.cfg.Handler.List()
	for i := range pods {
		pods[i].Error = bounded(pods[i].Error)
	}
	return split(pods)
}

// failure is the answer for err, which may be nil.
func failure(err error) []response {
	r := response{Version: Version}
	if err != nil {
		r.Error = bounded(err.Error())
	}
	return []response{r}
}

func (s *Server) send(c *net.UnixConn, r response) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_ = c.SetWriteDeadline(time.Now().Add(s.cfg.IdleTimeout))
	_, err = c.Write(b)
	return err
}
