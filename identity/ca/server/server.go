package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"istio.io/api/security/v1alpha1"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/ca/authority"
)

// What an empty field of Config stands for.
const (
	DefaultRate     = 20
	DefaultBurst    = 500
	DefaultInFlight = 64
)

// Refusals of one address that are logged: per second in the long run, and at once.
const (
	lineRate  = 1
	lineBurst = 20
)

// Caller is who a token belongs to: a service account, and the pod that the
// token is bound to.
type Caller struct {
	Namespace, ServiceAccount string
	PodName, PodUID           string
	// Node is where the pod runs according to the token; empty when the token
	// does not say (Kubernetes before 1.30).
	Node string
}

// String names the caller for logs; the zero value has no name.
func (c Caller) String() string {
	if c == (Caller{}) {
		return ""
	}
	return fmt.Sprintf("%s/%s (pod %s, %s)", c.Namespace, c.ServiceAccount, c.PodName, c.PodUID)
}

// Authority signs. *authority.Authority is one; one that follows rotations is
// in cmd/internal/kubeca. Issue is called concurrently. Its errors that are
// *authority.RequestError are told to the caller, others are not.
type Authority interface {
	Issue(r *authority.Request, id identity.ID, ttl time.Duration) ([]string, error)
}

// Observer counts requests. It is called concurrently and must not block.
type Observer interface {
	CertificateRequest(outcome Outcome, took time.Duration)
}

// Outcome is how a request ended.
type Outcome string

// The outcomes.
const (
	Issued          Outcome = "issued"
	Unauthenticated Outcome = "unauthenticated" // no token, or one that does not count
	Unauthorized    Outcome = "unauthorized"    // the caller may not have that identity
	Limited         Outcome = "limited"         // too many requests by this caller
	Invalid         Outcome = "invalid"         // the request itself is at fault
	Failed          Outcome = "failed"          // we are
	Cancelled       Outcome = "cancelled"       // the caller did not wait
)

// Config configures a Server.
type Config struct {
	// Authority signs. Required.
	Authority Authority
	// TrustDomain of the callers' own identities. Required.
	TrustDomain identity.TrustDomain
	// Authenticate finds out whose token it is. Required. An error refuses; one
	// that wraps ErrUnavailable says that it could not be found out.
	Authenticate func(ctx context.Context, token string) (Caller, error)
	// Authorize decides whether the caller may have the certificate of another
	// identity. Required. It is not asked about the caller's own, which comes
	// of leaving ImpersonatedIdentity out.
	Authorize func(ctx context.Context, caller Caller, id identity.ID) error
	// Rate and Burst bound the requests of one caller, so that none can starve
	// the others: Rate per second in the long run, Burst at once, as when a
	// node starts with all its pods. 0 means 20 and 500.
	Rate  float64
	Burst int
	// InFlight bounds the requests of one network address at a time, also of
	// those who have not shown who they are; 0 means 64.
	InFlight int
	// Observer is told about each request. Nil: nobody is.
	Observer Observer
	// Logger gets refusals with their reason as warnings, of one address only so
	// many that strangers cannot fill the log, and each issued certificate at
	// debug level. Nil discards.
	Logger *slog.Logger
	// Clock returns the time; nil means time.Now.
	Clock func() time.Time
}

// ErrUnavailable is wrapped by an Authenticate that cannot decide at the
// moment, so that the caller is told to come again.
var ErrUnavailable = errors.New("not to be found out at the moment")

// Server answers certificate requests.
type Server struct {
	v1alpha1.UnimplementedIstioCertificateServiceServer

	cfg    Config
	limits *limiter
	gate   *gate
	lines  *limiter      // refusals in the log, by address
	unsaid atomic.Uint64 // refusals that were not logged since the last one that was
}

// New makes a Server.
func New(cfg Config) (*Server, error) {
	cfg.Rate = cmp.Or(cfg.Rate, DefaultRate)
	cfg.Burst = cmp.Or(cfg.Burst, DefaultBurst)
	cfg.InFlight = cmp.Or(cfg.InFlight, DefaultInFlight)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Observer == nil {
		cfg.Observer = silent{}
	}
	var faults []error
	if cfg.Authority == nil || cfg.Authenticate == nil || cfg.Authorize == nil {
		faults = append(faults, errors.New("authority, authentication and authorization are required"))
	}
	if cfg.TrustDomain.IsZero() {
		faults = append(faults, errors.New("no trust domain"))
	}
	if cfg.Rate < 0 || cfg.Burst < 0 || cfg.InFlight < 0 {
		faults = append(faults, errors.New("negative limits"))
	}
	if err := errors.Join(faults...); err != nil {
		return nil, fmt.Errorf("make certificate server: %w", err)
	}
	return &Server{cfg: cfg, limits: newLimiter(cfg.Rate, cfg.Burst), gate: newGate(cfg.InFlight), lines: newLimiter(lineRate, lineBurst)}, nil
}

// Register adds the service to a gRPC server, whose transport must be TLS:
// tokens come over it.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	v1alpha1.RegisterIstioCertificateServiceServer(r, s)
}

type silent struct{}

func (silent) CertificateRequest(Outcome, time.Duration) {}
