package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/culvert-mesh/culvert/cmd/internal/admin"
	"github.com/culvert-mesh/culvert/cmd/internal/run"
	"github.com/culvert-mesh/culvert/identity/ca/server"
	"github.com/culvert-mesh/culvert/workload/publish"
)

const (
	handshakeTimeout = 10 * time.Second
	maxStreams       = 100 // of a connection
	maxHeaders       = 48 << 10
	// Agents ask for signs of life every 30 s, also when nothing is under way.
	leastPingInterval = 10 * time.Second
	pingAfter         = 30 * time.Second
	pingTimeout       = 10 * time.Second
	idleConnection    = 15 * time.Minute
)

// buildServers makes discovery and the certificate service, and the port that both are on.
func (c *controller) buildServers() ([]run.Component, error) {
	s := c.settings
	var err error
	c.publisher, err = publish.New(publish.Config{
		Store: c.store, Policies: c.policies, NetworkPolicies: c.networks, Ready: c.source.Synced(), Authenticate: c.door.agent,
		Observer: c.figures, Logger: c.scope("discovery"),
	})
	if err != nil {
		return nil, err
	}
	certificates, err := server.New(server.Config{
		Authority: c.authority, TrustDomain: s.trustDomain, Authenticate: found, Authorize: c.nodes.Authorize,
		Observer: c.figures, Logger: c.scope("ca"),
	})
	if err != nil {
		return nil, err
	}
	g := grpc.NewServer(append(c.publisher.Options(),
		grpc.Creds(credentials.NewTLS(&tls.Config{
			MinVersion: tls.VersionTLS12, GetCertificate: c.authority.Serving(s.names()),
		})),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: leastPingInterval, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: idleConnection, Time: pingAfter, Timeout: pingTimeout}),
	)...)
	c.publisher.Register(g)
	certificates.Register(newGuard(g, c.door.caller))
	l, err := listen("grpc-address", s.grpc.String())
	if err != nil {
		return nil, err
	}
	c.grpcAddress = l.Addr()
	return []run.Component{c.publishing(), {
		Name: "grpc",
		Run: func(ctx context.Context) error {
			return serveGRPC(ctx, g, newCrowd(l, maxConnections, maxConnectionsOfOne))
		},
		Drain: func(ctx context.Context) error {
			// From here on agents find another replica; streams of discovery are ended by their own component.
			done := make(chan struct{})
			go func() {
				defer close(done)
				g.GracefulStop()
			}()
			select {
			case <-done:
				return nil
			case <-ctx.Done():
				g.Stop()
				<-done
				return context.Cause(ctx)
			}
		},
	}}, nil
}

// publishing runs discovery, which ends as soon as the program drains: its streams would go on for ever.
func (c *controller) publishing() run.Component {
	stop, stopped := make(chan struct{}), make(chan struct{})
	return run.Component{
		Name: "discovery",
		Run: func(ctx context.Context) error {
			defer close(stopped)
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			go func() {
				select {
				case <-stop:
					cancel()
				case <-ctx.Done():
				}
			}()
			return c.publisher.Run(ctx)
		},
		Drain: func(ctx context.Context) error {
			close(stop)
			select {
			case <-stopped:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		},
	}
}

func serveGRPC(ctx context.Context, g *grpc.Server, l net.Listener) error {
	failed := make(chan error, 1)
	go func() { failed <- g.Serve(l) }()
	var err error
	select {
	case err = <-failed:
	case <-ctx.Done():
		g.Stop()
		err = <-failed
	}
	if errors.Is(err, grpc.ErrServerStopped) {
		err = nil
	}
	return err
}

func (c *controller) buildAdmin(levels *admin.Levels) ([]run.Component, error) {
	s := c.settings
	cfg := admin.Config{
		Logger: c.scope("admin"), Gatherer: admin.Samples(c.samples), Readiness: &c.ready, Levels: levels, Dump: c.dump(),
		QuitTimeout: s.drain,
		Quit: func(ctx context.Context) {
			c.group.Stop()
			select {
			case <-c.group.Drained():
			case <-ctx.Done():
			}
		},
	}
	var err error
	if cfg.HealthListener, err = listen("metrics-address", s.metrics.String()); err != nil {
		return nil, err
	}
	c.healthAddress = cfg.HealthListener.Addr()
	if cfg.AdminListener, err = listen("admin-address", s.common.Admin.String()); err != nil {
		return nil, err
	}
	server, err := admin.New(cfg)
	if err != nil {
		return nil, err
	}
	return []run.Component{{Name: "admin", Run: server.Run}}, nil
}

func listen(flag, address string) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(context.Background(), "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("--%s: %w", flag, err)
	}
	return l, nil
}
