// Package ca is the client of the Istio certificate service.
package ca

import (
	"context"
	"crypto"
	"errors"
	"log/slog"
	"net"
	"time"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/svid"
)

// Config configures a Client.
type Config struct {
	// Address is host:port of the certificate service, with or without the
	// https scheme. Required.
	Address string
	// RootCA verifies the service: the path of a PEM file, PEM text, or SYSTEM.
	RootCA string
	// TokenFile holds the bearer token; empty sends none.
	TokenFile string
	// ClusterID is sent as metadata "clusterid".
	ClusterID string
	// Headers are sent as further metadata.
	Headers map[string]string
	// AltHostname is the name that the service's certificate must carry, if
	// not the host of Address.
	AltHostname string
	// TTL is the validity asked for; 0 means 24 h.
	TTL time.Duration
	// Impersonate names the identity asked for in the request.
	Impersonate bool
	// Timeout bounds one call; 0 means 10 s.
	Timeout time.Duration
	// Logger; nil discards.
	Logger *slog.Logger
	// Dial opens the connection; nil means a plain TCP dial.
	Dial func(ctx context.Context, address string) (net.Conn, error)
}

// Client asks the certificate service.
type Client struct{ cfg Config }

// New makes a Client.
func New(cfg Config) (*Client, error) { return &Client{cfg: cfg}, nil }

// Fetch has one certificate issued.
func (c *Client) Fetch(ctx context.Context, id identity.ID) (*svid.SVID, error) {
	return nil, errors.ErrUnsupported
}

// Close ends the connection.
func (c *Client) Close() error { return nil }

// CSR makes a key and a request for id.
func CSR(id identity.ID) (key crypto.Signer, csrPEM []byte, err error) {
	return nil, nil, errors.ErrUnsupported
}
