// Package ca is the client of the Istio certificate service
// (istio.v1.auth.IstioCertificateService), as istiod and Culvert's own
// controller serve it.
//
// It makes keys and requests and reads the answers. It neither renews (package
// manager) nor signs (package issuer). A Client may be used concurrently.
package ca

import (
	"cmp"
	"context"
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	"istio.io/api/security/v1alpha1"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/svid"
)

const (
	defaultTTL     = 24 * time.Hour
	defaultTimeout = 10 * time.Second

	// impersonatedIdentity is the field of the request's metadata that istiod
	// reads the wanted identity from.
	impersonatedIdentity = "ImpersonatedIdentity"
)

// Config configures a Client.
type Config struct {
	// Address is host:port of the certificate service, with or without
	// "https://" before it. Required; there is no plaintext.
	Address string
	// RootCA verifies the service: the path of a PEM file, PEM text, or SYSTEM
	// for the machine's roots. A file is read again when it changes. Required.
	RootCA string
	// TokenFile holds the bearer token, read again for each call because
	// kubelet replaces it. Empty: no token is sent.
	TokenFile string
	// ClusterID is sent as metadata "clusterid" unless empty.
	ClusterID string
	// Headers are sent as further metadata; names are made lower case.
	Headers map[string]string
	// AltHostname is the name that the service's certificate must carry; empty
	// means the host of Address.
	AltHostname string
	// TTL is the validity to ask for; 0 means 24 h. The service may grant less.
	TTL time.Duration
	// Impersonate names the wanted identity in the request, as a node agent
	// must whose token is its own and not the workload's. Without it the
	// service takes the identity from the token.
	Impersonate bool
	// Timeout bounds one call, connecting included; 0 means 10 s.
	Timeout time.Duration
	// Logger gets a warning when RootCA cannot be read again. Nil discards.
	Logger *slog.Logger
	// Dial opens the connection to Address; nil means an ordinary TCP dial.
	Dial func(ctx context.Context, address string) (net.Conn, error)
}

func (cfg Config) withDefaults() (Config, error) {
	cfg.Address = strings.TrimSuffix(strings.TrimPrefix(cfg.Address, "https://"), "/")
	cfg.TTL = cmp.Or(cfg.TTL, defaultTTL)
	cfg.Timeout = cmp.Or(cfg.Timeout, defaultTimeout)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Dial == nil {
		cfg.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{
				Enable: true, Idle: 300 * time.Second, Interval: 75 * time.Second, Count: 9, // as ztunnel
			}}
			return d.DialContext(ctx, "tcp", address)
		}
	}
	var faults []error
	if _, _, err := net.SplitHostPort(cfg.Address); err != nil {
		faults = append(faults, fmt.Errorf("address %q: %w", cfg.Address, err))
	}
	if cfg.TTL < time.Second {
		faults = append(faults, fmt.Errorf("validity %s is less than a second", cfg.TTL))
	}
	if cfg.RootCA == "" {
		faults = append(faults, errors.New("no root certificates given"))
	}
	return cfg, errors.Join(faults...)
}

// Client asks the certificate service. It is a svid.Source.
type Client struct {
	cfg      Config
	retiring sync.WaitGroup // channels replaced whose calls are not over

	mu      sync.Mutex
	roots   rootSource
	channel *channel // nil before the first call and after Close
	closed  bool
}

var _ svid.Source = (*Client)(nil)

// New makes a Client. It reads the roots, so that a faulty file is found now,
// and connects at the first Fetch. The caller must Close it.
func New(cfg Config) (*Client, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("make certificate client: %w", err)
	}
	c := &Client{cfg: cfg, roots: rootSource{spec: cfg.RootCA}}
	if _, _, err := c.roots.load(); err != nil {
		return nil, fmt.Errorf("make certificate client: %w", err)
	}
	return c, nil
}

// Fetch has a certificate issued for id with a new key. The answer must carry
// exactly that identity, in whichever mode it was asked for.
func (c *Client) Fetch(ctx context.Context, id identity.ID) (*svid.SVID, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	key, csrPEM, err := CSR(id)
	if err != nil {
		return nil, err
	}
	ctx, err = c.outgoing(ctx)
	if err != nil {
		return nil, fmt.Errorf("fetch certificate: %w", err)
	}
	request := &v1alpha1.IstioCertificateRequest{
		Csr:              string(csrPEM),
		ValidityDuration: int64(c.cfg.TTL / time.Second),
	}
	if c.cfg.Impersonate {
		request.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{
			impersonatedIdentity: structpb.NewStringValue(id.String()),
		}}
	}
	ch, err := c.acquire()
	if err != nil {
		return nil, fmt.Errorf("fetch certificate: %w", err)
	}
	defer ch.release()
	response, err := ch.service.CreateCertificate(ctx, request)
	if err != nil {
		return nil, fmt.Errorf("fetch certificate from %s: %w", c.cfg.Address, callError(ctx, err, c.cfg.Timeout))
	}
	s, err := read(response.GetCertChain(), key, id)
	if err != nil {
		return nil, fmt.Errorf("fetch certificate from %s: %w", c.cfg.Address, err)
	}
	return s, nil
}

// outgoing adds the metadata of one call.
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
		// ztunnel sends the file as it is; a newline at its end, which no token
		// contains, would only make the header invalid.
		token := strings.TrimSpace(string(content))
		if token == "" {
			return nil, fmt.Errorf("read token: %s is empty", c.cfg.TokenFile)
		}
		md.Set("authorization", "Bearer "+token)
	}
	return metadata.NewOutgoingContext(ctx, md), nil
}

// callError shortens a failed call to what an operator can use.
func callError(ctx context.Context, err error, timeout time.Duration) error {
	ctxErr := ctx.Err()
	if deadline, ok := ctx.Deadline(); ok && ctxErr == nil && !time.Now().Before(deadline) {
		ctxErr = context.DeadlineExceeded // the server has noticed before the timer here
	}
	if errors.Is(ctxErr, context.DeadlineExceeded) {
		return fmt.Errorf("no answer within %s: %w", timeout, ctxErr)
	} else if ctxErr != nil {
		return ctxErr
	}
	st := status.Convert(err)
	return fmt.Errorf("%s: %s", st.Code(), st.Message())
}

// read makes an SVID of the service's answer: the leaf, intermediates, and in
// the last element the roots, of which there may be several.
func read(chain []string, key crypto.Signer, id identity.ID) (*svid.SVID, error) {
	if len(chain) == 0 {
		return nil, errors.New("the answer holds no certificate")
	}
	if len(chain) == 1 {
		return nil, errors.New("the answer holds no root certificate, only a leaf")
	}
	last := len(chain) - 1
	certs, err := identity.ParseCertificates([]byte(strings.Join(chain[:last], "\n")))
	if err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	got, err := svid.IDFromCert(certs[0])
	if err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	if got != id {
		return nil, fmt.Errorf("the answer is for %s, not for %s", got, id)
	}
	bundle, err := identity.ParseBundle(id.TrustDomain(), []byte(chain[last]))
	if err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	return svid.New(certs, key, bundle)
}
