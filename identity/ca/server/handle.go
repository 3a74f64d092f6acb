package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"istio.io/api/security/v1alpha1"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/ca/authority"
)

const (
	// impersonatedIdentity is the field of the request's metadata that names
	// the wanted identity.
	impersonatedIdentity = "ImpersonatedIdentity"

	maxToken    = 16 << 10 // projected tokens have about 1 KiB
	maxMetadata = 16 << 10
	maxNames    = 512 // octets of what somebody asks to be called, in a log line
)

// refusal is why a request is not granted: what the log says, and what the
// caller is told.
type refusal struct {
	outcome Outcome
	code    codes.Code
	told    string
	cause   error
}

func (r *refusal) Error() string { return r.cause.Error() }

// unauthenticated is the one answer to everybody who is not who he should be,
// for whatever reason, as istiod's.
func unauthenticated(outcome Outcome, cause error) *refusal {
	return &refusal{outcome, codes.Unauthenticated, "request authenticate failure", cause}
}

func invalid(cause error) *refusal {
	return &refusal{Invalid, codes.InvalidArgument, cause.Error(), cause}
}

// CreateCertificate implements the service.
func (s *Server) CreateCertificate(ctx context.Context, in *v1alpha1.IstioCertificateRequest) (*v1alpha1.IstioCertificateResponse, error) {
	begun := s.cfg.Clock()
	h := &handling{server: s, address: Address(ctx)}
	chain, refused := h.handle(ctx, in)
	outcome := Issued
	if refused != nil {
		if ctx.Err() != nil {
			refused = &refusal{Cancelled, status.FromContextError(ctx.Err()).Code(), "the caller did not wait", refused.cause}
		}
		outcome = refused.outcome
	}
	s.cfg.Observer.CertificateRequest(outcome, s.cfg.Clock().Sub(begun))
	log := s.cfg.Logger.With("address", h.address, "caller", h.caller.String(), "identity", h.id.String())
	if refused != nil {
		if s.lines.take(h.address, s.cfg.Clock()) {
			log.Warn("certificate refused", "outcome", string(outcome), "reason", refused.cause, "not_logged", s.unsaid.Swap(0))
		} else {
			s.unsaid.Add(1)
		}
		return nil, status.Error(refused.code, refused.told)
	}
	log.Debug("certificate issued")
	return &v1alpha1.IstioCertificateResponse{CertChain: chain}, nil
}

// handling is one request on its way.
type handling struct {
	server  *Server
	address string
	caller  Caller
	id      identity.ID
}

// handle goes from cheap to expensive, and tells nothing before it knows who
// asks.
func (h *handling) handle(ctx context.Context, in *v1alpha1.IstioCertificateRequest) ([]string, *refusal) {
	cfg := &h.server.cfg
	if !h.server.gate.enter(h.address) {
		return nil, &refusal{Limited, codes.ResourceExhausted, "too many requests at a time", errors.New("too many requests of this address at a time")}
	}
	defer h.server.gate.leave(h.address)
	token, err := Bearer(ctx)
	if err != nil {
		return nil, unauthenticated(Unauthenticated, err)
	}
	h.caller, err = cfg.Authenticate(ctx, token)
	if errors.Is(err, ErrUnavailable) {
		return nil, &refusal{Failed, codes.Unavailable, "authentication is not possible at the moment", err}
	}
	if err != nil {
		return nil, unauthenticated(Unauthenticated, err)
	}
	if !h.server.limits.take(h.bucket(), cfg.Clock()) {
		return nil, &refusal{Limited, codes.ResourceExhausted, "too many requests", errors.New("too many requests of this caller")}
	}
	if refused := h.identify(ctx, in); refused != nil {
		return nil, refused
	}
	return h.issue(in)
}

func (h *handling) bucket() string {
	return cmp.Or(h.caller.PodUID, h.caller.Namespace+"/"+h.caller.ServiceAccount)
}

// identify finds the identity to issue: the one asked for if that is allowed,
// else the caller's own.
func (h *handling) identify(ctx context.Context, in *v1alpha1.IstioCertificateRequest) *refusal {
	cfg := &h.server.cfg
	if n := proto.Size(in.GetMetadata()); n > maxMetadata {
		return invalid(fmt.Errorf("the metadata has %d octets, limit is %d", n, maxMetadata))
	}
	var err error
	field, given := in.GetMetadata().GetFields()[impersonatedIdentity]
	if !given {
		if h.id, err = identity.New(cfg.TrustDomain, h.caller.Namespace, h.caller.ServiceAccount); err != nil {
			return unauthenticated(Unauthorized, fmt.Errorf("the caller's own identity: %w", err))
		}
		return nil
	}
	// istiod reads a value of another type as the wish for one's own identity.
	// That would be a certificate that the caller did not ask for.
	text, ok := field.GetKind().(*structpb.Value_StringValue)
	if !ok {
		return invalid(fmt.Errorf("%s is not a string", impersonatedIdentity))
	}
	if h.id, err = identity.Parse(text.StringValue); err != nil {
		return unauthenticated(Unauthorized, err)
	}
	if h.id.TrustDomain() != cfg.TrustDomain {
		return unauthenticated(Unauthorized, fmt.Errorf("%s is not of trust domain %s", h.id, cfg.TrustDomain))
	}
	if err := cfg.Authorize(ctx, h.caller, h.id); err != nil {
		return unauthenticated(Unauthorized, err)
	}
	return nil
}

// issue reads the request proper and has it signed.
func (h *handling) issue(in *v1alpha1.IstioCertificateRequest) ([]string, *refusal) {
	cfg := &h.server.cfg
	seconds := in.GetValidityDuration()
	if seconds < 0 || seconds > math.MaxInt64/int64(time.Second) {
		return nil, invalid(fmt.Errorf("a validity of %d s is not possible", seconds))
	}
	request, err := authority.ParseRequest([]byte(in.GetCsr()))
	if err != nil {
		return nil, invalid(err)
	}
	for _, name := range request.Names() {
		if name != h.id.String() {
			cfg.Logger.Warn("a certificate request names what its sender is not, which is ignored",
				"address", h.address, "caller", h.caller.String(), "identity", h.id.String(), "named", name[:min(len(name), maxNames)])
			break
		}
	}
	chain, err := cfg.Authority.Issue(request, h.id, time.Duration(seconds)*time.Second)
	if _, ok := errors.AsType[*authority.RequestError](err); ok {
		return nil, invalid(err)
	}
	if err != nil {
		return nil, &refusal{Failed, codes.Internal, "the certificate was not issued", err}
	}
	return chain, nil
}

// Bearer returns the token that a gRPC method was called with.
func Bearer(ctx context.Context) (string, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	values := md.Get("authorization")
	switch {
	case len(values) == 0:
		return "", errors.New("no token")
	case len(values) > 1:
		return "", errors.New("more than one token")
	case len(values[0]) > maxToken:
		return "", fmt.Errorf("the token has %d octets, limit is %d", len(values[0]), maxToken)
	}
	kind, token, ok := strings.Cut(values[0], " ")
	token = strings.TrimSpace(token)
	if !ok || !strings.EqualFold(kind, "Bearer") || token == "" {
		return "", errors.New("the authorization header is no bearer token")
	}
	return token, nil
}

// Address returns the network address, without the port, of whoever called a
// gRPC method with this context; "" if it is not known.
func Address(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok || p.Addr == nil {
		return ""
	}
	if ap, err := netip.ParseAddrPort(p.Addr.String()); err == nil {
		return ap.Addr().Unmap().String()
	}
	return p.Addr.String()
}
