package proxy

import (
	"context"
	"errors"
	"fmt"

	"github.com/culvert-mesh/culvert/hbone/h2"
	"github.com/culvert-mesh/culvert/hbone/record"
	"github.com/culvert-mesh/culvert/hbone/tunnel"
	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/mtls"
	"github.com/culvert-mesh/culvert/workload/route"
)

// Why a flow ends or is refused; the texts are ztunnel's where it has one.
var (
	// ErrPolicyChange ends a live flow that a changed policy does not allow any more.
	ErrPolicyChange = errors.New("connection closed due to policy change")
	// ErrDrain ends a live flow when its pod goes, or when the deadline of a shutdown has come.
	ErrDrain = errors.New("connection closed due to connection drain")
	// ErrSelfCall refuses a connection that leads back to the agent's own ports.
	ErrSelfCall = errors.New("attempted recursive call to ourselves")
	// ErrLocalWorkload refuses a connection of a pod whose workload did not become known in time.
	ErrLocalWorkload = errors.New("failed to fetch information about local workload")
	// ErrOutboundPolicy ends a live flow to a destination that is not in the registry any more, or need not have been.
	ErrOutboundPolicy = errors.New("connection closed due to outbound traffic policy REGISTRY_ONLY: destination is not in the registry")
	// ErrConnectTimeout ends the attempts to establish a connection.
	ErrConnectTimeout = errors.New("connect timed out")
	// ErrLongAuthority refuses a request for a name that no host can have.
	ErrLongAuthority = errors.New("no valid authority pseudo header: too long")
	// ErrCrowded refuses who has many connections when hardly any descriptors are left; see shares.
	ErrCrowded = errors.New("no descriptors are left for who has many connections")
	// ErrMethod refuses a request that is not a CONNECT.
	ErrMethod = errors.New("invalid method, only CONNECT is supported")
)

// DeniedError is a connection that policy refused.
type DeniedError struct {
	// Policy is the key of the policy that decided; empty when none did.
	Policy string
	Reason string
}

// Error implements error.
func (e *DeniedError) Error() string {
	return "connection closed due to policy rejection: " + e.Reason
}

// StatusError is a peer's refusal of a request.
type StatusError struct{ Status int }

// Error implements error.
func (e *StatusError) Error() string { return fmt.Sprintf("http status: %d", e.Status) }

// NetworkPolicyError is a peer whose HBONE port does not answer at all.
type NetworkPolicyError struct {
	Port uint16
	Err  error
}

// Error implements error.
func (e *NetworkPolicyError) Error() string {
	return fmt.Sprintf("connection timed out, maybe a NetworkPolicy is blocking HBONE port %d: %v", e.Port, e.Err)
}

// Unwrap returns the cause.
func (e *NetworkPolicyError) Unwrap() error { return e.Err }

// IdentityError is a certificate of our own that cannot be had.
type IdentityError struct {
	ID  identity.ID
	Err error
}

// Error implements error.
func (e *IdentityError) Error() string {
	if e.ID.IsZero() {
		return fmt.Sprintf("identity error: %v", e.Err)
	}
	return fmt.Sprintf("identity error: certificate of %s: %v", e.ID, e.Err)
}

// Unwrap returns the cause.
func (e *IdentityError) Unwrap() error { return e.Err }

// endedError is a flow that ended otherwise than in order after it was established.
type endedError struct{ err error }

func (e *endedError) Error() string { return e.err.Error() }

func (e *endedError) Unwrap() error { return e.err }

// Flag is the value of the label response_flags.
type Flag uint8

// The flags; FlagNone is a flow that did not fail.
const (
	FlagNone Flag = iota
	FlagDeny
	FlagConnect
	FlagTLSFailure
	FlagH2HandshakeFailure
	FlagNetworkPolicy
	FlagIdentityError
	FlagCertRevoked
)

// String returns the label's value.
func (f Flag) String() string {
	names := [...]string{"-", "DENY", "CONNECT", "TLS_FAILURE", "H2_HANDSHAKE_FAILURE", "NETWORK_POLICY", "IDENTITY_ERROR", "CERT_REVOKED"}
	if int(f) < len(names) {
		return names[f]
	}
	return "CONNECT"
}

// flagOf sorts an outcome. An application that aborts an established connection is no failure of the mesh.
func flagOf(err error) Flag {
	if err == nil {
		return FlagNone
	}
	if _, ok := errors.AsType[*mtls.RevokedError](err); ok {
		return FlagCertRevoked
	}
	if _, ok := errors.AsType[*DeniedError](err); ok || errors.Is(err, ErrPolicyChange) || errors.Is(err, ErrOutboundPolicy) || errors.Is(err, route.ErrNotRegistered) {
		return FlagDeny
	}
	if _, ok := errors.AsType[*IdentityError](err); ok {
		return FlagIdentityError
	}
	if _, ok := errors.AsType[*NetworkPolicyError](err); ok {
		return FlagNetworkPolicy
	}
	if ended, ok := errors.AsType[*endedError](err); ok {
		return endedFlag(ended.err)
	}
	if _, ok := errors.AsType[*tunnel.HandshakeError](err); ok {
		return FlagTLSFailure
	}
	if _, ok := errors.AsType[*record.Error](err); ok {
		return FlagTLSFailure // above all a peer that refuses our certificate, which it may say after our handshake
	}
	if _, ok := errors.AsType[*h2.ConnError](err); ok {
		return FlagH2HandshakeFailure
	}
	return FlagConnect
}

// endedFlag sorts the end of an established flow.
func endedFlag(err error) Flag {
	if tunnelLost(err) || errors.Is(err, ErrDrain) {
		return FlagConnect
	}
	return FlagNone
}

// tunnelLost reports an error that ended a tunnel and not just one stream.
func tunnelLost(err error) bool {
	if _, ok := errors.AsType[*record.Error](err); ok {
		return true
	}
	if _, ok := errors.AsType[*h2.ConnError](err); ok {
		return true
	}
	return errors.Is(err, tunnel.ErrLost) || errors.Is(err, tunnel.ErrTruncated) || errors.Is(err, tunnel.ErrPeerClosed) || errors.Is(err, tunnel.ErrDead) ||
		errors.Is(err, tunnel.ErrUnread) || errors.Is(err, tunnel.ErrClosed)
}

// atFault reports the end of a tunnel for something that its peer did, or did not do, which is worth a line of its own:
// the tunnel need not have had streams that tell of it.
func atFault(err error) bool {
	if e, ok := errors.AsType[*record.Error](err); ok {
		return !e.Remote
	}
	if _, ok := errors.AsType[*h2.ConnError](err); ok {
		return true
	}
	return errors.Is(err, tunnel.ErrUnread) || errors.Is(err, tunnel.ErrDead)
}

// timedOut reports an attempt that ran out of time.
func timedOut(err error) bool {
	return errors.Is(err, ErrConnectTimeout) || errors.Is(err, context.DeadlineExceeded) || tunnel.TimedOut(err)
}
