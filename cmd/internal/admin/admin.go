// Package admin serves what operators and probes ask a program: metrics, readiness, the configuration in force, log
// levels and profiles.
//
//	metrics (15020)    /metrics, /stats/prometheus
//	readiness (15021)  /healthz/ready
//	health (15014)     /metrics, /healthz, /readyz: instead of the two above
//	admin (localhost:15000)  /config_dump, /logging, /quitquitquit, /debug/pprof/...
//
// Paths, answers and query parameters are those of ztunnel, so that istioctl and existing probes work unchanged. The
// package opens no sockets and knows nothing of what it shows: listeners and content come in Config. A Server is run
// once; [Readiness] and [Levels] may be used from any goroutine.
package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Limits of the servers. A request is one line and a few headers from a tool or probe; the header limit is ztunnel's.
const (
	headerTimeout = 2 * time.Second
	headerBytes   = 8 << 10
	idleTimeout   = 2 * time.Minute
	stopTimeout   = time.Second
	// answerTimeout bounds what everybody may ask: who does not read holds all that the answer is made of.
	answerTimeout = 20 * time.Second
	// maxScrapes is how many may ask for metrics at once. Each takes memory of the order of all series.
	maxScrapes = 4
)

// Config is what a Server serves and where. A nil listener leaves its part out.
type Config struct {
	// Logger gets failures of the servers; nil discards.
	Logger *slog.Logger

	// MetricsListener serves the metrics of Gatherer, which it requires.
	MetricsListener net.Listener
	Gatherer        prometheus.Gatherer

	// ReadyListener serves the state of Readiness, which it requires.
	ReadyListener net.Listener
	Readiness     *Readiness

	// HealthListener serves metrics, liveness and readiness (/metrics, /healthz, /readyz) on one port, as programs of
	// Kubernetes' control plane do. It requires Gatherer and Readiness.
	HealthListener net.Listener

	// AdminListener serves the rest. Its address must be a loopback one (or a Unix socket): there is no
	// authentication. The Server takes requests there only under names of this machine.
	AdminListener net.Listener
	// Dump holds the parts of /config_dump by key. Each is called for each request, possibly at once with another, and
	// its result is marshalled to JSON. Optional.
	Dump map[string]func() (any, error)
	// Pages are further paths (without slash) that answer with JSON. Optional.
	Pages map[string]Page
	// Levels is what /logging shows and changes. Nil leaves the path out.
	Levels *Levels
	// Quit is called by POST /quitquitquit: it begins to stop the program and returns when established work has ended
	// or ctx has. Nil leaves the path out.
	Quit func(ctx context.Context)
	// QuitTimeout bounds the wait for Quit. Zero means 5 s.
	QuitTimeout time.Duration
}

// Page is a path whose answer is made for each request, possibly at once with another.
type Page struct {
	About   string // one line for the index
	Content func() (any, error)
}

// Server is the set of HTTP servers. Create it with New.
type Server struct {
	logger *slog.Logger
	parts  []part
}

type part struct {
	listener net.Listener
	server   *http.Server
}

// New checks the configuration. The listeners belong to the Server from a successful return on.
func New(cfg Config) (*Server, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.QuitTimeout <= 0 {
		cfg.QuitTimeout = 5 * time.Second
	}
	s := &Server{logger: cfg.Logger}
	if cfg.MetricsListener != nil {
		if cfg.Gatherer == nil {
			return nil, errors.New("serve metrics: no gatherer")
		}
		s.add(cfg.MetricsListener, metricsHandler(cfg), answerTimeout)
	}
	if cfg.ReadyListener != nil {
		if cfg.Readiness == nil {
			return nil, errors.New("serve readiness: no readiness")
		}
		s.add(cfg.ReadyListener, readyHandler(cfg.Readiness), answerTimeout)
	}
	if cfg.HealthListener != nil {
		if cfg.Gatherer == nil || cfg.Readiness == nil {
			return nil, errors.New("serve health: no gatherer or no readiness")
		}
		s.add(cfg.HealthListener, healthHandler(cfg), answerTimeout)
	}
	if cfg.AdminListener != nil {
		if err := checkLocal(cfg.AdminListener.Addr()); err != nil {
			return nil, fmt.Errorf("serve admin: %w", err)
		}
		s.add(cfg.AdminListener, localNamesOnly(adminHandler(cfg)), 0) // profiles take minutes
	}
	return s, nil
}

// add adds a listener; zero does not bound the time of an answer.
func (s *Server) add(l net.Listener, h http.Handler, answer time.Duration) {
	s.parts = append(s.parts, part{listener: l, server: &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTimeout,
		WriteTimeout:      answer,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    headerBytes,
		ErrorLog:          slog.NewLogLogger(s.logger.Handler(), slog.LevelDebug),
	}})
}

// Run serves until ctx ends, lets running requests finish for a second, and closes the listeners. An error of one
// listener ends all.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, p := range s.parts {
		wg.Go(func() {
			if err := p.server.Serve(p.listener); !errors.Is(err, http.ErrServerClosed) {
				cancel(fmt.Errorf("serve on %s: %w", p.listener.Addr(), err))
			}
		})
	}
	<-ctx.Done()
	stopping, stopped := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer stopped()
	for _, p := range s.parts {
		wg.Go(func() {
			if p.server.Shutdown(stopping) != nil {
				_ = p.server.Close() // nothing is left that a failure could harm
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

func checkLocal(addr net.Addr) error {
	switch a := addr.(type) {
	case *net.UnixAddr:
		return nil
	case *net.TCPAddr:
		if a.AddrPort().Addr().Unmap().IsLoopback() {
			return nil
		}
	}
	return fmt.Errorf("%s is reachable from elsewhere: only a loopback address is allowed", addr)
}

// localNamesOnly refuses requests that a browser was lured into: they carry the name of a foreign site, which resolves
// to this machine (DNS rebinding), or the Origin of one.
func localNamesOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !localHost(r.Host) || r.Header.Get("Origin") != "" {
			http.Error(w, "only requests to localhost are served", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func localHost(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	if host == "localhost" || host == "" {
		return true
	}
	addr, err := netip.ParseAddr(trimBrackets(host))
	return err == nil && addr.Unmap().IsLoopback()
}

func trimBrackets(host string) string {
	if len(host) > 2 && host[0] == '[' && host[len(host)-1] == ']' {
		return host[1 : len(host)-1]
	}
	return host
}
