package publish

import (
	"errors"
	"fmt"
	"strconv"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// session is the protocol of one stream without its I/O: requests go in, responses
// come out, one at a time:
//
//	take(first request of a type) ─► next ─► response ─► take(its answer) ─► next ─► ...
//
// A response is made only when the one before was answered, of whichever type:
// whatever changed in the meantime is then in it, and policies are with the client
// before the workloads that name them and until after; a pod's labels are there
// before its workload is. A session belongs to one goroutine.
type session struct {
	peer  Peer
	types []*subscription // in the order in which they are sent

	nonce uint64
	open  *response // not answered yet; nil when there is none
}

// newSession returns a session that serves these types, in the order in which
// they are sent.
func newSession(peer Peer, types ...string) *session {
	s := &session{peer: peer}
	for _, t := range types {
		s.types = append(s.types, &subscription{typeURL: t})
	}
	return s
}

// types returns the types that the server serves, in the order in which they are
// sent.
func (s *Server) types() []string {
	all := []string{NetworkPolicyType, AuthorizationType, AddressType}
	if s.cfg.NetworkPolicies == nil {
		return all[1:]
	}
	return all
}

// outcome is what a request was, besides what it asks for.
type outcome struct {
	answered, rejected, expired bool
	unserved                    bool   // it asks for a type of ours that is switched off
	detail                      string // of a rejection, as the client words it
}

// errClaim is the cause of refusing a client that says it is another.
var errClaim = errors.New("client claims to be another")

// take applies a request. An error ends the stream.
func (s *session) take(r *discovery.DeltaDiscoveryRequest) (outcome, error) {
	var o outcome
	if err := checkRequest(r); err != nil {
		return o, err
	}
	if r.GetNode() != nil {
		if err := s.checkNode(r); err != nil {
			return o, err
		}
	}
	sub := s.subscription(r.GetTypeUrl())
	if sub == nil && r.GetTypeUrl() == NetworkPolicyType {
		// Agents ask for it until they are told not to. An end of the stream would
		// keep all else from them.
		o.unserved = true
		return o, nil
	}
	if sub == nil {
		return o, fmt.Errorf("type %q is not served", cut(r.GetTypeUrl()))
	}
	if !sub.begun {
		// A nonce here is one of an earlier stream.
		return o, sub.begin(r)
	}
	if nonce := r.GetResponseNonce(); nonce != "" {
		if s.open == nil || s.open.nonce != nonce || s.open.typeURL != sub.typeURL {
			o.expired = true
		} else {
			s.open, o.answered = nil, true
		}
	}
	if r.GetErrorDetail() != nil {
		// What the client could not take it will not take the second time either. It
		// says so to people, and gets the resource again when it changes.
		o.rejected = o.answered
		o.detail = cut(r.GetErrorDetail().GetMessage())
	}
	return o, sub.change(r)
}

// next returns the next response to send, or nil when there is nothing to say.
func (s *session) next(st *state) *response {
	if s.open != nil {
		return nil
	}
	for _, sub := range s.types {
		if r := sub.respond(st, s.peer.Node); r != nil {
			return s.number(sub, r, st)
		}
	}
	for _, sub := range s.types {
		if r := sub.late(st); r != nil {
			return s.number(sub, r, st)
		}
	}
	return nil
}

// number makes r the response that is open.
func (s *session) number(sub *subscription, r *response, st *state) *response {
	s.nonce++
	r.typeURL, r.nonce, r.version = sub.typeURL, strconv.FormatUint(s.nonce, 10), strconv.FormatUint(st.version, 10)
	s.open = r
	return r
}

func (s *session) subscription(typeURL string) *subscription {
	for _, sub := range s.types {
		if sub.typeURL == typeURL {
			return sub
		}
	}
	return nil
}

// checkNode compares what a client says about itself with what is known. Nothing
// is decided by what it says, but one that says something else than the truth is
// broken or worse. What it does not say is not held against it.
func (s *session) checkNode(r *discovery.DeltaDiscoveryRequest) error {
	fields := r.GetNode().GetMetadata().GetFields()
	for _, claim := range []struct{ key, is string }{
		{"NODE_NAME", s.peer.Node}, {"NAMESPACE", s.peer.Namespace},
		{"SERVICE_ACCOUNT", s.peer.ServiceAccount}, {"NAME", s.peer.PodName},
	} {
		says := fields[claim.key].GetStringValue()
		if says != "" && claim.is != "" && says != claim.is {
			return fmt.Errorf("%w: %s is %q, not %q", errClaim, claim.key, claim.is, cut(says))
		}
	}
	return nil
}
