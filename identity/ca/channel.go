package ca

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"istio.io/api/security/v1alpha1"

	"github.com/culvert-mesh/culvert/identity"
)

// ztunnel's settings for its control-plane connections.
const (
	connectTimeout   = 5 * time.Second
	http2PingAfter   = 30 * time.Second
	http2PingTimeout = 10 * time.Second
)

// channel is one gRPC connection with the roots that it was made with. It is
// closed when the client has let go of it and its last call has ended.
type channel struct {
	conn    *grpc.ClientConn
	service v1alpha1.IstioCertificateServiceClient
	users   sync.WaitGroup
}

func (ch *channel) release() { ch.users.Done() }

// retire closes the channel once its calls have ended.
func (ch *channel) retire() error {
	ch.users.Wait()
	return ch.conn.Close()
}

// acquire returns the channel for one call, which must release it. When the
// root file has changed it makes a new channel; when the new content is of no
// use, the old channel stays and the next call tries again.
func (c *Client) acquire() (*channel, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, fmt.Errorf("certificate client is closed: %w", net.ErrClosed)
	}
	pool, changed, err := c.roots.load()
	switch {
	case err != nil && c.channel == nil:
		return nil, err
	case err != nil:
		c.cfg.Logger.Warn("roots of the certificate service not read again, the old ones stay", "error", err)
	case changed || c.channel == nil:
		ch, err := c.connect(pool)
		if err != nil {
			return nil, err
		}
		if old := c.channel; old != nil {
			c.retiring.Go(func() { _ = old.retire() })
		}
		c.channel = ch
	}
	c.channel.users.Add(1)
	return c.channel, nil
}

// Close ends the connection after the calls that are under way, and waits for
// them. Later calls fail with an error that is net.ErrClosed.
func (c *Client) Close() error {
	c.mu.Lock()
	ch := c.channel
	c.channel, c.closed = nil, true
	c.mu.Unlock()
	var err error
	if ch != nil {
		err = ch.retire()
	}
	c.retiring.Wait()
	return err
}

// connect makes a channel; the connection itself is opened by the first call.
func (c *Client) connect(pool *x509.CertPool) (*channel, error) {
	host, _, err := net.SplitHostPort(c.cfg.Address)
	if err != nil {
		return nil, err
	}
	creds := credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS12,
		RootCAs:    pool,
		ServerName: cmp.Or(c.cfg.AltHostname, host),
	})
	conn, err := grpc.NewClient("passthrough:///"+c.cfg.Address,
		grpc.WithTransportCredentials(creds),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return c.cfg.Dial(ctx, address)
		}),
		grpc.WithNoProxy(), // the environment is not ours to read
		grpc.WithDisableServiceConfig(),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: http2PingAfter, Timeout: http2PingTimeout}),
		// The manager paces attempts; gRPC must not still be waiting when the
		// next one comes.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, MaxDelay: time.Second},
			MinConnectTimeout: connectTimeout,
		}),
	)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", c.cfg.Address, err)
	}
	return &channel{conn: conn, service: v1alpha1.NewIstioCertificateServiceClient(conn)}, nil
}

// rootSource reads the roots that a specification names, and tells when they
// have changed. It is not safe for concurrent use.
type rootSource struct {
	spec    string
	content []byte
	pool    *x509.CertPool
}

// load returns the roots and whether they differ from those of the last load
// that succeeded. A nil pool stands for the machine's own roots.
func (r *rootSource) load() (pool *x509.CertPool, changed bool, err error) {
	if r.spec == "SYSTEM" {
		return nil, false, nil
	}
	content := []byte(r.spec)
	if !strings.Contains(r.spec, "-----BEGIN") {
		// A file of a few KiB, read as often as certificates are fetched: no
		// cleverness with time stamps is needed to notice a change.
		content, err = os.ReadFile(r.spec)
		if err != nil {
			return nil, false, fmt.Errorf("read root certificates: %w", err)
		}
	}
	if r.pool != nil && bytes.Equal(content, r.content) {
		return r.pool, false, nil
	}
	certs, err := identity.ParseCertificates(content)
	if err != nil {
		return nil, false, fmt.Errorf("read root certificates: %w", r.place(err))
	}
	pool = x509.NewCertPool()
	for _, cert := range certs {
		pool.AddCert(cert)
	}
	r.content, r.pool = content, pool
	return pool, true, nil
}

func (r *rootSource) place(err error) error {
	if strings.Contains(r.spec, "-----BEGIN") {
		return err
	}
	return fmt.Errorf("%s: %w", r.spec, err)
}
