package publish

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const (
	// authenticateTimeout bounds the Authenticate hook.
	authenticateTimeout = 10 * time.Second
	// readyTimeout is how long a stream waits for the first state before the
	// client is asked to try elsewhere.
	readyTimeout = 5 * time.Second
)

// serverStream is gRPC's side of a stream.
type serverStream = discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer

// request is what clients send.
type request = *discovery.DeltaDiscoveryRequest

// stream is one client's stream. Its handler's goroutine owns it.
type stream struct {
	server  *Server
	grpc    serverStream
	peer    Peer
	token   string
	log     *slog.Logger
	session *session

	order    uint64
	replaced chan struct{} // closed when the peer has opened too many others
	sentAt   *state        // of the open response
	unserved bool          // it was said that the client asks for what is not served
}

// DeltaAggregatedResources serves one stream.
func (s *Server) DeltaAggregatedResources(g serverStream) error {
	token, err := bearer(g.Context())
	if err != nil {
		s.cfg.Observer.Refused(RefusedToken)
		return status.Error(codes.Unauthenticated, err.Error())
	}
	peer, err := s.authenticate(g.Context(), token)
	if err != nil {
		s.cfg.Observer.Refused(RefusedToken)
		return err
	}
	st := &stream{
		server: s, grpc: g, peer: peer, token: token, session: newSession(peer, s.types()...), replaced: make(chan struct{}),
		log: s.cfg.Logger.With("peer", peer.String(), "node", peer.Node),
	}
	if err := s.admit(st); err != nil {
		return err
	}
	defer s.leave(st)
	if err := st.awaitReady(); err != nil {
		return err
	}
	return st.serve()
}

// bearer takes the token from a stream's metadata.
func bearer(ctx context.Context) (string, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	values := md.Get("authorization")
	if len(values) != 1 {
		return "", errors.New("exactly one authorization is required")
	}
	token, ok := strings.CutPrefix(values[0], "Bearer ")
	if !ok || token == "" || len(token) > maxToken {
		return "", errors.New("authorization is no bearer token")
	}
	return token, nil
}

// authenticate asks the hook. The client learns only whether to come back.
func (s *Server) authenticate(ctx context.Context, token string) (Peer, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, authenticateTimeout, errors.New("authentication took too long"))
	defer cancel()
	peer, err := s.cfg.Authenticate(ctx, token)
	if err == nil {
		return peer, nil
	}
	if ctx.Err() != nil || status.Code(err) == codes.Unavailable {
		s.logStranger(fmt.Errorf("cannot be authenticated now: %w", err))
		return Peer{}, status.Error(codes.Unavailable, "authentication is not available")
	}
	s.logStranger(err)
	return Peer{}, status.Error(codes.Unauthenticated, "authentication failed")
}

// logStranger logs that a client was not let in. Anybody who reaches the port can be one, so that the log gets some of them.
func (s *Server) logStranger(err error) {
	s.unsaid.Add(1)
	s.strangers.Do(func() {
		s.cfg.Logger.Warn("client refused", "error", err, "not_logged", s.unsaid.Swap(0)-1)
	})
}

// admit counts a stream in. A peer's oldest stream makes place for its newest:
// one that lost its connection comes back before the old one is known to be dead.
func (s *Server) admit(st *stream) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return errStopping
	}
	if len(s.streams) >= s.cfg.MaxStreams {
		s.cfg.Observer.Refused(RefusedLimit)
		return status.Error(codes.ResourceExhausted, "too many streams")
	}
	var oldest *stream
	n := 0
	for other := range s.streams {
		if other.peer != st.peer {
			continue
		}
		n++
		if oldest == nil || other.order < oldest.order {
			oldest = other
		}
	}
	if n >= s.cfg.MaxStreamsPerPeer {
		delete(s.streams, oldest)
		close(oldest.replaced)
	}
	s.order++
	st.order = s.order
	s.streams[st] = struct{}{}
	s.readers.Add(1)
	s.cfg.Observer.Streams(len(s.streams))
	return nil
}

func (s *Server) leave(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, st)
	s.cfg.Observer.Streams(len(s.streams))
	s.readers.Done()
}

// errStopping is worded as clients know it from servers that go.
var errStopping = status.Error(codes.Unavailable, "transport is closing: the server stops")

// awaitReady waits for the first state.
func (st *stream) awaitReady() error {
	limit := time.NewTimer(readyTimeout)
	defer limit.Stop()
	select {
	case <-st.server.first:
		return nil
	case <-limit.C:
		st.server.cfg.Observer.Refused(RefusedReady)
		return status.Error(codes.Unavailable, "there is no state to serve yet")
	case <-st.server.stopping:
		return errStopping
	case <-st.replaced:
		return status.Error(codes.Canceled, "replaced by a newer stream")
	case <-st.grpc.Context().Done():
		return status.FromContextError(st.grpc.Context().Err()).Err()
	}
}

// serve goes on until the stream ends.
func (st *stream) serve() error {
	ctx, cancel := context.WithCancel(st.grpc.Context())
	defer cancel()
	requests, failed := st.read(ctx)
	checks := st.recheck(ctx)
	cfg := &st.server.cfg
	age := time.NewTimer(spread(cfg.MaxAge))
	defer age.Stop()
	answer := time.NewTimer(cfg.AnswerTimeout)
	defer answer.Stop()
	for {
		current := st.server.state.Load()
		sent, err := st.push(current)
		if err != nil {
			return err
		}
		if sent {
			answer.Reset(cfg.AnswerTimeout)
		}
		select {
		case r := <-requests:
			if err := st.take(r); err != nil {
				return err
			}
		case err := <-failed:
			return err
		case <-current.changed:
		case err := <-checks:
			cfg.Observer.Refused(RefusedToken)
			return err
		case <-answer.C:
			if st.session.open != nil {
				cfg.Observer.Refused(RefusedSlow)
				st.log.Warn("client did not answer in time", "type", st.session.open.typeURL, "timeout", cfg.AnswerTimeout)
				return status.Error(codes.DeadlineExceeded, "a response was not answered in time")
			}
		case <-age.C:
			// Every client knows this as a part of a server's life.
			return status.Error(codes.DeadlineExceeded, "the stream has reached its age")
		case <-st.server.stopping:
			return errStopping
		case <-st.replaced:
			return status.Error(codes.Canceled, "replaced by a newer stream")
		}
	}
}

// spread varies a duration by a tenth, so that clients do not come in waves.
func spread(d time.Duration) time.Duration {
	return d - d/10 + rand.N(d/5+1)
}

// read hands over requests, one at a time: while one is worked on, gRPC's window
// holds up the client. It ends with ctx or the stream.
func (st *stream) read(ctx context.Context) (<-chan request, <-chan error) {
	requests, failed := make(chan request), make(chan error, 1)
	st.server.readers.Add(1)
	go func() {
		defer st.server.readers.Done()
		for {
			r, err := st.grpc.Recv()
			if err != nil {
				failed <- endOf(err)
				return
			}
			select {
			case requests <- r:
			case <-ctx.Done():
				return
			}
		}
	}()
	return requests, failed
}

// endOf says how a stream ends that cannot be read: well when the client has ended
// it.
func endOf(err error) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	return nil
}

// recheck looks at the token again and again, and delivers an error once it is not
// the peer's any more. While that cannot be known the stream goes on.
func (st *stream) recheck(ctx context.Context) <-chan error {
	failed := make(chan error, 1)
	st.server.readers.Add(1)
	go func() {
		defer st.server.readers.Done()
		for {
			timer := time.NewTimer(spread(st.server.cfg.Reauthenticate))
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return
			}
			peer, err := st.server.authenticate(ctx, st.token)
			switch {
			case ctx.Err() != nil:
				return
			case status.Code(err) == codes.Unavailable:
				continue
			case err == nil && peer != st.peer:
				err = status.Error(codes.Unauthenticated, "the token is another's now")
			}
			if err != nil {
				failed <- err
				return
			}
		}
	}()
	return failed
}

// take applies a request.
func (st *stream) take(r request) error {
	o := st.server.cfg.Observer
	out, err := st.session.take(r)
	switch {
	case errors.Is(err, errClaim):
		o.Refused(RefusedClaim)
		st.log.Warn("client refused", "error", err)
		return status.Error(codes.PermissionDenied, "the node is not the one that the token is for")
	case err != nil:
		o.Refused(RefusedRequest)
		st.log.Warn("request refused", "error", err)
		return status.Error(codes.InvalidArgument, err.Error())
	}
	switch {
	case out.rejected:
		o.Rejected(r.GetTypeUrl())
		st.log.Warn("client rejected a response", "type", r.GetTypeUrl(), "nonce", r.GetResponseNonce(), "detail", out.detail)
	case out.expired:
		o.Expired(r.GetTypeUrl())
	}
	if out.answered && st.sentAt != nil {
		o.Converged(time.Since(st.sentAt.seen))
		st.sentAt = nil
	}
	if out.unserved && !st.unserved {
		st.unserved = true
		st.log.Warn("client asks for network policies, which are not served: what it knows of them stays as it is")
	}
	return nil
}

// push sends the next response, if there is one to be sent now. Send does not
// block: the client has read all that was sent before.
func (st *stream) push(current *state) (sent bool, err error) {
	r := st.session.next(current)
	if r == nil {
		return false, nil
	}
	message := r.encode()
	if err := st.grpc.SendMsg(encoded(message)); err != nil {
		return false, err
	}
	st.server.cfg.Observer.Pushed(r.typeURL, len(r.resources), len(r.removed), message.Len())
	if r.asked {
		st.sentAt = nil
	} else {
		st.sentAt = current
	}
	r.resources, r.removed = nil, nil // only its nonce is of interest now
	return true, nil
}
