package xds

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
)

// ztunnel's settings for its control-plane connections.
const (
	connectTimeout   = 5 * time.Second
	http2PingAfter   = 30 * time.Second
	http2PingTimeout = 10 * time.Second
	// maxMessage is the longest response taken: the whole mesh comes in one.
	maxMessage = 200 << 20
)

// connect makes the connection of one attempt, with the roots as they are now.
func (c *Client) connect() (*grpc.ClientConn, error) {
	config, err := c.tls()
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("passthrough:///"+c.cfg.Address,
		grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithContextDialer(c.cfg.Dial),
		grpc.WithNoProxy(), // the environment is not ours to read
		grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: http2PingAfter, Timeout: http2PingTimeout}),
		// Run paces the attempts; this connection makes one.
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: connectTimeout}),
	)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", c.cfg.Address, err)
	}
	return conn, nil
}

// tls makes the configuration of one attempt.
func (c *Client) tls() (*tls.Config, error) {
	roots, err := loadRoots(c.cfg.RootCA)
	if err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(c.cfg.Address)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, ServerName: host}
	if alt := c.cfg.AltHostname; alt != "" {
		// Either name will do. The standard check knows only one name, so it is
		// done here, on every handshake, with everything else that it checks.
		config.InsecureSkipVerify = true
		config.VerifyConnection = func(cs tls.ConnectionState) error {
			return verify(cs, roots, host, alt)
		}
	}
	return config, nil
}

// verify checks the server's certificate as crypto/tls does, for either name.
func verify(cs tls.ConnectionState, roots *x509.CertPool, names ...string) error {
	if len(cs.PeerCertificates) == 0 {
		return errors.New("server sent no certificate")
	}
	intermediates := x509.NewCertPool()
	for _, cert := range cs.PeerCertificates[1:] {
		intermediates.AddCert(cert)
	}
	var errs []error
	for _, name := range names {
		_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{
			DNSName: name, Roots: roots, Intermediates: intermediates,
		})
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// loadRoots reads the roots that the setting names; nil stands for the machine's.
func loadRoots(setting string) (*x509.CertPool, error) {
	if setting == "SYSTEM" {
		return nil, nil
	}
	text := []byte(setting)
	if !strings.Contains(setting, "-----BEGIN") {
		var err error
		if text, err = os.ReadFile(setting); err != nil {
			return nil, fmt.Errorf("read root certificates: %w", err)
		}
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, errors.New("read root certificates: no certificate found")
	}
	return pool, nil
}

// outgoing adds the metadata of one attempt, with the token as it is now.
func (c *Client) outgoing(ctx context.Context) (context.Context, error) {
	md := metadata.New(c.cfg.Headers)
	if c.cfg.ClusterID != "" {
		md.Set("clusterid", c.cfg.ClusterID)
	}
	if c.cfg.TokenFile != "" {
		content, err := os.ReadFile(c.cfg.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("read token: %w", err)
		}
		token := strings.TrimSpace(string(content))
		if token == "" {
			return nil, fmt.Errorf("read token: %s is empty", c.cfg.TokenFile)
		}
		md.Set("authorization", "Bearer "+token)
	}
	return metadata.NewOutgoingContext(ctx, md), nil
}

// dialTCP dials with the keep-alive settings of Istio's proxies.
func dialTCP(ctx context.Context, address string) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: 300 * time.Second, Interval: 75 * time.Second, Count: 9,
	}}
	return d.DialContext(ctx, "tcp", address)
}
