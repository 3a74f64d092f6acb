package publish_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
	"github.com/culvert-mesh/culvert/workload/publish"
	"github.com/culvert-mesh/culvert/workload/workloadtest"
)

// TestRefused: who is not served, and how a client is told.
func TestRefused(t *testing.T) {
	long := strings.Repeat("x", 2000)
	claim := func(key, value string) *discovery.DeltaDiscoveryRequest {
		r := subscribe(publish.AddressType, nil)
		r.Node.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{key: structpb.NewStringValue(value)}}
		return r
	}
	for _, tt := range []struct {
		name          string
		authorization []string
		request       *discovery.DeltaDiscoveryRequest
		want          codes.Code
		why           publish.Refusal
	}{
		{"no-token", nil, nil, codes.Unauthenticated, publish.RefusedToken},
		{"wrong-token", []string{"Bearer bad"}, nil, codes.Unauthenticated, publish.RefusedToken},
		{"other-scheme", []string{"Basic good"}, nil, codes.Unauthenticated, publish.RefusedToken},
		{"two-tokens", []string{"Bearer good", "Bearer bad"}, nil, codes.Unauthenticated, publish.RefusedToken},
		{"long-token", []string{"Bearer " + strings.Repeat("x", 20<<10)}, nil, codes.Unauthenticated, publish.RefusedToken},
		{"unknown-type", []string{"Bearer good"}, subscribe("type.googleapis.com/envoy.config.cluster.v3.Cluster", nil), codes.InvalidArgument, publish.RefusedRequest},
		{"no-type", []string{"Bearer good"}, subscribe("", nil), codes.InvalidArgument, publish.RefusedRequest},
		{"long-name", []string{"Bearer good"}, ask(long), codes.InvalidArgument, publish.RefusedRequest},
		{"long-known-name", []string{"Bearer good"}, subscribe(publish.AddressType, map[string]string{long: ""}), codes.InvalidArgument, publish.RefusedRequest},
		{"long-version", []string{"Bearer good"}, subscribe(publish.AddressType, map[string]string{"a": long}), codes.InvalidArgument, publish.RefusedRequest},
		{"other-node", []string{"Bearer good"}, claim("NODE_NAME", "node-b"), codes.PermissionDenied, publish.RefusedClaim},
		{"other-namespace", []string{"Bearer good"}, claim("NAMESPACE", "kube-system"), codes.PermissionDenied, publish.RefusedClaim},
		{"other-account", []string{"Bearer good"}, claim("SERVICE_ACCOUNT", "admin"), codes.PermissionDenied, publish.RefusedClaim},
		{"other-pod", []string{"Bearer good"}, claim("NAME", "culvert-node-b"), codes.PermissionDenied, publish.RefusedClaim},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := start(t, nil)
			c := f.dial(t, tt.authorization...)
			if tt.request != nil {
				c.send(tt.request)
			}
			err := c.ended()
			if got := status.Code(err); got != tt.want {
				t.Errorf("stream ended with %v, want %v", err, tt.want)
			}
			f.observed.eventually(t, "refusal is counted", "refused "+string(tt.why), 1)
			if strings.Contains(f.log.String(), "good") || strings.Contains(err.Error(), "node-a") {
				t.Errorf("too much is told: %v\n%s", err, f.log)
			}
		})
	}
}

// TestLongTokenIsNotPassedOn: what is too long to be a token is not passed on.
func TestLongTokenIsNotPassedOn(t *testing.T) {
	f := start(t, func(c *publish.Config) {
		c.Authenticate = func(_ context.Context, token string) (publish.Peer, error) {
			t.Errorf("asked about a token of %d bytes", len(token))
			return agent, nil
		}
	})
	if err := f.dial(t, "Bearer "+strings.Repeat("x", 20<<10)).ended(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("stream ended with %v, want Unauthenticated", err)
	}
}

// TestStrangersInLog: whoever reaches the port cannot fill the disk.
func TestStrangersInLog(t *testing.T) {
	f := start(t, nil)
	begin := time.Now()
	for range 100 {
		if err := f.dial(t, "Bearer bad").ended(); status.Code(err) != codes.Unauthenticated {
			t.Fatal(err)
		}
	}
	seconds := int(time.Since(begin).Seconds()) + 1
	if n := strings.Count(f.log.String(), "client refused"); n < 20 || n > 20+seconds {
		t.Errorf("%d of 100 in the log within %d s", n, seconds)
	}
}

// TestTokenIsLookedAtAgain: a stream does not outlive what let it in; while that
// cannot be known it goes on.
func TestTokenIsLookedAtAgain(t *testing.T) {
	answers := make(chan error, 1)
	f := start(t, func(c *publish.Config) {
		c.Reauthenticate = 5 * time.Millisecond
		c.Authenticate = func(ctx context.Context, _ string) (publish.Peer, error) {
			select {
			case err := <-answers:
				return agent, err
			case <-ctx.Done():
				return agent, ctx.Err()
			}
		}
	})
	answers <- nil
	c := f.dial(t, "Bearer good")
	c.send(subscribe(publish.AddressType, nil))
	c.answer(publish.AddressType)
	for _, err := range []error{nil, status.Error(codes.Unavailable, "the API server is away"), nil} {
		answers <- err
	}
	f.store.Apply(workloadtest.Events(pod("a", "10.0.0.1")))
	wantNames(t, c.answer(publish.AddressType), []string{uidA})
	answers <- errors.New("expired")
	if err := c.ended(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("stream ended with %v, want Unauthenticated", err)
	}
}

// TestTokenOfAnotherNow: a stream goes on only for the peer that it was begun by.
func TestTokenOfAnotherNow(t *testing.T) {
	first := true // one call after the other
	f := start(t, func(c *publish.Config) {
		c.Reauthenticate = 5 * time.Millisecond
		c.Authenticate = func(context.Context, string) (publish.Peer, error) {
			p := agent
			if !first {
				p.PodUID = "uid-b"
			}
			first = false
			return p, nil
		}
	})
	if err := f.dial(t, "Bearer good").ended(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("stream ended with %v, want Unauthenticated", err)
	}
	f.observed.eventually(t, "refusal is counted", "refused token", 1)
}

// TestAuthenticationAway: a client that cannot be judged comes back later.
func TestAuthenticationAway(t *testing.T) {
	f := start(t, func(c *publish.Config) {
		c.Authenticate = func(context.Context, string) (publish.Peer, error) {
			return publish.Peer{}, status.Error(codes.Unavailable, "the API server is away")
		}
	})
	if err := f.dial(t, "Bearer good").ended(); status.Code(err) != codes.Unavailable {
		t.Errorf("stream ended with %v, want Unavailable", err)
	}
}

// asking is the server's end of a stream of which only the metadata has come.
type asking struct {
	discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	ctx context.Context
}

func (a asking) Context() context.Context { return a.ctx }

// TestAuthenticationHangs: that nobody answers in time says nothing about a token.
func TestAuthenticationHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := publish.New(publish.Config{
			Store: workload.New(), Policies: policy.New(), Ready: make(chan struct{}), Observer: newObserved(),
			Authenticate: func(ctx context.Context, _ string) (publish.Peer, error) {
				<-ctx.Done()
				return publish.Peer{}, ctx.Err()
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		md := metadata.Pairs("authorization", "Bearer good")
		err = s.DeltaAggregatedResources(asking{ctx: metadata.NewIncomingContext(t.Context(), md)})
		if status.Code(err) != codes.Unavailable {
			t.Errorf("stream ended with %v, want Unavailable", err)
		}
	})
}
