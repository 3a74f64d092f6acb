package kubeca_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/culvert-mesh/culvert/cmd/internal/kubeca"
	"github.com/culvert-mesh/culvert/identity/ca/server"
	"github.com/culvert-mesh/culvert/identity/identitytest"
)

// reviewer is an API server on a socket that reviews tokens, several at a time, which client-go's fake does not.
type reviewer struct {
	*kubeca.Authenticator
	t       *testing.T
	release chan struct{} // until it is closed, bad tokens get no answer
	expires time.Time

	askedBad, askedGood atomic.Int64
}

func newReviewer(t *testing.T, qps float32) *reviewer {
	t.Helper()
	r := &reviewer{t: t, release: make(chan struct{}), expires: time.Now().Add(time.Hour)}
	api := httptest.NewServer(r)
	t.Cleanup(api.Close)
	client, err := kubernetes.NewForConfig(&rest.Config{Host: api.URL, QPS: qps, Burst: 1, ContentConfig: rest.ContentConfig{ContentType: "application/json"}})
	if err != nil {
		t.Fatal(err)
	}
	r.Authenticator, err = kubeca.NewAuthenticator(kubeca.AuthenticatorConfig{Client: client})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// ServeHTTP implements http.Handler.
func (r *reviewer) ServeHTTP(w http.ResponseWriter, in *http.Request) {
	var review authenticationv1.TokenReview
	if err := json.NewDecoder(in.Body).Decode(&review); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if strings.HasSuffix(review.Spec.Token, ".bad") {
		r.askedBad.Add(1)
		select {
		case <-r.release:
		case <-in.Context().Done():
		}
		review.Status.Error = "[invalid bearer token]"
	} else {
		r.askedGood.Add(1)
		review.Status = accepted("culvert-system", "culvert-node", "agent", "uid", "node")
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(review)
}

func from(ctx context.Context, address string) context.Context {
	return identitytest.CalledFrom(ctx, netip.MustParseAddr(address))
}

func (r *reviewer) token(name string) string { return agentToken(r.t, name, r.expires) }

// bad is a token with another signature.
func (r *reviewer) bad(name string) string {
	token := r.token(name)
	return token[:strings.LastIndex(token, ".")] + ".bad"
}

// flood has one address call so many times at a time with ever new bad tokens, until the returned function is called.
func (r *reviewer) flood(address string, calls int) (stop func()) {
	ctx, cancel := context.WithCancel(from(r.t.Context(), address))
	var all sync.WaitGroup
	for call := range calls {
		all.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				if _, err := r.Authenticate(ctx, r.bad(fmt.Sprint(address, call, n))); err == nil {
					r.t.Error("a forged token is accepted")
				}
			}
		})
	}
	return func() {
		cancel()
		all.Wait()
	}
}

// TestReviewsThatHang has one address use up what it may: reviews of others go on, and its own when it has stopped.
func TestReviewsThatHang(t *testing.T) {
	r := newReviewer(t, 10000)
	var refused atomic.Bool
	ctx, cancel := context.WithCancel(from(t.Context(), "192.0.2.1"))
	var all sync.WaitGroup
	for n := range 300 {
		all.Go(func() {
			_, err := r.Authenticate(ctx, r.bad(fmt.Sprint(n)))
			if err != nil && strings.Contains(err.Error(), "too many tokens of this address") && errors.Is(err, server.ErrUnavailable) {
				refused.Store(true)
			}
		})
	}
	eventually(t, "one too many is refused", func() bool { return refused.Load() && r.askedBad.Load() > 0 })
	if _, err := r.Authenticate(from(t.Context(), "192.0.2.2"), r.token("honest")); err != nil {
		t.Errorf("another address: %v", err)
	}
	if n := r.askedBad.Load(); n > 4 {
		t.Errorf("%d reviews of one address at a time", n)
	}
	cancel()
	all.Wait()
	if _, err := r.Authenticate(from(t.Context(), "192.0.2.1"), r.token("honest too")); err != nil {
		t.Errorf("the same address afterwards: %v", err)
	}
}

// TestReviewsOfOneToken has an agent ask for the certificates of all its pods at once, as at its start.
func TestReviewsOfOneToken(t *testing.T) {
	r := newReviewer(t, 10000)
	token := r.token("agent")
	var all sync.WaitGroup
	for range 200 {
		all.Go(func() {
			if _, err := r.Authenticate(from(t.Context(), "192.0.2.1"), token); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := r.askedGood.Load(); n > 4 {
		t.Errorf("%d reviews of one token", n)
	}
}

// TestReviewsInAFlood bounds how many reviews of bad tokens an honest agent waits for, where the client lets only some pass
// per second. Counting them is independent of how fast the machine is.
func TestReviewsInAFlood(t *testing.T) {
	const (
		most  = 16 + 16 // those that are in the client already, and as many when its turn comes
		calls = 100     // of each flooder
	)
	for _, flooders := range []int{1, 6} {
		t.Run(fmt.Sprint(flooders), func(t *testing.T) {
			r := newReviewer(t, 200)
			close(r.release)
			for n := range flooders {
				stop := r.flood(fmt.Sprintf("192.0.2.%d", n+1), calls)
				defer stop()
			}
			eventually(t, "flood", func() bool { return r.askedBad.Load() > 40 })
			for n := range 5 {
				before, begin := r.askedBad.Load(), time.Now()
				if _, err := r.Authenticate(from(t.Context(), "198.51.100.1"), r.token(fmt.Sprint("honest ", n))); err != nil {
					t.Fatal(err)
				}
				waited := r.askedBad.Load() - before
				t.Logf("an honest agent waits %v for %d reviews", time.Since(begin).Round(time.Millisecond), waited)
				if waited > most {
					t.Errorf("it waits for %d reviews, want at most %d", waited, most)
				}
			}
		})
	}
}
