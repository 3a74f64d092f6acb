package kubeca_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/runtime"
	k8stesting "k8s.io/client-go/testing"

	"github.com/culvert-mesh/culvert/cmd/internal/kubeca"
	"github.com/culvert-mesh/culvert/identity/ca/server"
)

// token makes something that looks like a token of a service account.
func token(t testing.TB, claims map[string]any) string {
	t.Helper()
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	part := base64.RawURLEncoding.EncodeToString
	return part([]byte(`{"alg":"RS256"}`)) + "." + part(payload) + "." + part([]byte("signature"))
}

// agentToken is the token of the agent's pod on a node, for istio-ca.
func agentToken(t testing.TB, node string, expires time.Time) string {
	t.Helper()
	return token(t, map[string]any{"aud": []string{"istio-ca"}, "exp": expires.Unix(), "sub": "agent on " + node})
}

// reviews answers TokenReviews as the API server does: for what it knows.
type reviews struct {
	mu     sync.Mutex
	tokens map[string]authenticationv1.TokenReviewStatus
	err    error
	asked  int
}

func newReviews(c *cluster) *reviews {
	r := &reviews{tokens: make(map[string]authenticationv1.TokenReviewStatus)}
	c.PrependReactor("create", "tokenreviews", func(action k8stesting.Action) (bool, runtime.Object, error) {
		review := action.(k8stesting.CreateAction).GetObject().(*authenticationv1.TokenReview).DeepCopy()
		r.mu.Lock()
		defer r.mu.Unlock()
		r.asked++
		if r.err != nil {
			return true, nil, r.err
		}
		status, known := r.tokens[review.Spec.Token]
		if !known {
			status = authenticationv1.TokenReviewStatus{Error: "[invalid bearer token]"}
		}
		if len(review.Spec.Audiences) != 1 || review.Spec.Audiences[0] != "istio-ca" {
			return true, nil, fmt.Errorf("asked for audiences %v", review.Spec.Audiences)
		}
		review.Status = status
		return true, review, nil
	})
	return r
}

func (r *reviews) know(token string, status authenticationv1.TokenReviewStatus) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tokens[token] = status
}

func (r *reviews) forget(token string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.tokens, token)
}

func (r *reviews) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
}

func (r *reviews) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked
}

// accepted is the status of a good token.
func accepted(namespace, account, pod, uid, node string) authenticationv1.TokenReviewStatus {
	extra := map[string]authenticationv1.ExtraValue{}
	for key, value := range map[string]string{"pod-name": pod, "pod-uid": uid, "node-name": node} {
		if value != "" {
			extra["authentication.kubernetes.io/"+key] = authenticationv1.ExtraValue{value}
		}
	}
	return authenticationv1.TokenReviewStatus{
		Authenticated: true,
		Audiences:     []string{"istio-ca"},
		User:          authenticationv1.UserInfo{Username: "system:serviceaccount:" + namespace + ":" + account, Extra: extra},
	}
}

func newAuthenticator(t testing.TB, c *cluster, now *clock) *kubeca.Authenticator {
	t.Helper()
	cfg := kubeca.AuthenticatorConfig{Client: c}
	if now != nil {
		cfg.Clock = now.Now
	}
	a, err := kubeca.NewAuthenticator(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestAuthenticate(t *testing.T) {
	c := newCluster(t)
	api := newReviews(c)
	a := newAuthenticator(t, c, nil)
	good := agentToken(t, "a", time.Now().Add(time.Hour))
	api.know(good, accepted("culvert-system", "culvert-node", "culvert-node-x", "uid-x", "node-a"))
	for range 3 {
		got, err := a.Authenticate(t.Context(), good)
		want := server.Caller{Namespace: "culvert-system", ServiceAccount: "culvert-node", PodName: "culvert-node-x", PodUID: "uid-x", Node: "node-a"}
		if err != nil || got != want {
			t.Errorf("got %+v, %v", got, err)
		}
	}
	if n := api.count(); n != 1 {
		t.Errorf("%d reviews of one token", n)
	}
}

func TestAuthenticateRefuses(t *testing.T) {
	c := newCluster(t)
	api := newReviews(c)
	hour := time.Now().Add(time.Hour).Unix()
	status := func(change func(*authenticationv1.TokenReviewStatus)) authenticationv1.TokenReviewStatus {
		s := accepted("culvert-system", "culvert-node", "pod", "uid", "")
		change(&s)
		return s
	}
	ours := func(name string) string {
		return token(t, map[string]any{"aud": "istio-ca", "exp": hour, "name": name})
	}
	tests := []struct {
		name   string
		token  string
		status *authenticationv1.TokenReviewStatus
		err    string
		asked  int
	}{
		{"empty", "", nil, "the token is no JSON web token", 0},
		{"opaque", "abcdef.0123456789", nil, "the token is no JSON web token", 0},
		{"not_base64", "a.!!!.c", nil, "the token is no JSON web token", 0},
		{"not_json", "a." + base64.RawURLEncoding.EncodeToString([]byte("hello")) + ".c", nil, "the token's claims cannot be read", 0},
		{"huge", strings.Repeat("a", 20000), nil, "the token has 20000 octets, limit is 16384", 0},
		{"other_audience", token(t, map[string]any{"aud": []string{"https://kubernetes.default.svc"}, "exp": hour}), nil, "the token is not for this audience", 0},
		{"no_audience", token(t, map[string]any{"exp": hour}), nil, "the token is not for this audience", 0},
		{"audience_number", token(t, map[string]any{"aud": 7, "exp": hour}), nil, "the token's claims cannot be read", 0},
		{"forged", ours("forged"), nil, "the API server refuses the token: [invalid bearer token]", 1},
		{"refused_silently", ours("silent"), &authenticationv1.TokenReviewStatus{}, "the API server refuses the token", 1},
		{"audience_unknown_to_server", ours("old"), new(status(func(s *authenticationv1.TokenReviewStatus) { s.Audiences = nil })), "the token is not for this audience", 1},
		{"audience_of_others", ours("others"), new(status(func(s *authenticationv1.TokenReviewStatus) { s.Audiences = []string{"vault"} })), "the token is not for this audience", 1},
		{"person", ours("person"), new(status(func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "admin" })), `the token is that of "admin", which is no service account`, 1},
		{"node", ours("node"), new(status(func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "system:node:a" })), "which is no service account", 1},
		{"stranger_of_that_form", ours("stranger"), new(status(func(s *authenticationv1.TokenReviewStatus) {
			s.User.Username = "oidc:serviceaccount:culvert-system:culvert-node"
		})), "which is no service account", 1},
		{"nameless", ours("nameless"), new(status(func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "system:serviceaccount::" })), "which is no service account", 1},
		{"not_bound", ours("secret"), new(status(func(s *authenticationv1.TokenReviewStatus) { s.User.Extra = nil })), "the token of culvert-system/culvert-node is not bound to a pod", 1},
		{"half_bound", ours("half"), new(status(func(s *authenticationv1.TokenReviewStatus) {
			delete(s.User.Extra, "authentication.kubernetes.io/pod-uid")
		})), "is not bound to a pod", 1},
		{"bound_twice", ours("twice"), new(status(func(s *authenticationv1.TokenReviewStatus) {
			s.User.Extra["authentication.kubernetes.io/pod-name"] = authenticationv1.ExtraValue{"pod", "other"}
		})), "is not bound to a pod", 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := newAuthenticator(t, c, nil)
			if tt.status != nil {
				api.know(tt.token, *tt.status)
			}
			before := api.count()
			for range 2 { // the second time from memory
				got, err := a.Authenticate(t.Context(), tt.token)
				if err == nil || !strings.Contains(err.Error(), tt.err) || errors.Is(err, server.ErrUnavailable) {
					t.Errorf("got %+v, error %v, want %s", got, err, tt.err)
				}
				if err != nil && tt.token != "" && strings.Contains(err.Error(), tt.token) {
					t.Error("the error tells the token")
				}
			}
			if n := api.count() - before; n != tt.asked {
				t.Errorf("%d reviews, want %d", n, tt.asked)
			}
		})
	}
}

// TestAuthenticateExpiry has tokens end while they are in memory.
func TestAuthenticateExpiry(t *testing.T) {
	c := newCluster(t)
	api := newReviews(c)
	now := &clock{now: time.Now().Truncate(time.Second)}
	a := newAuthenticator(t, c, now)
	status := accepted("culvert-system", "culvert-node", "pod", "uid", "")
	short, long := agentToken(t, "short", now.now.Add(10*time.Second)), agentToken(t, "long", now.now.Add(time.Hour))
	past := agentToken(t, "past", now.now.Add(-5*time.Minute)) // by our clock, which is ahead of the API server's
	for _, tok := range []string{short, long, past} {
		api.know(tok, status)
		for range 2 {
			if _, err := a.Authenticate(t.Context(), tok); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := api.count(); n != 4 { // past is asked for each time
		t.Errorf("%d reviews", n)
	}
	api.forget(short)
	now.add(10 * time.Second)
	if _, err := a.Authenticate(t.Context(), short); err == nil {
		t.Error("a token is accepted beyond its end")
	}
	api.forget(long) // its pod was deleted
	now.add(19 * time.Second)
	if _, err := a.Authenticate(t.Context(), long); err != nil {
		t.Errorf("not remembered: %v", err)
	}
	now.add(time.Second)
	if _, err := a.Authenticate(t.Context(), long); err == nil {
		t.Error("remembered for more than 30 s")
	}
	api.know(long, status)
	now.add(5 * time.Second)
	if _, err := a.Authenticate(t.Context(), long); err != nil {
		t.Errorf("a refusal is remembered for more than 5 s: %v", err)
	}
}

func TestAuthenticateUnavailable(t *testing.T) {
	c := newCluster(t)
	api := newReviews(c)
	a := newAuthenticator(t, c, nil)
	tok := agentToken(t, "a", time.Now().Add(time.Hour))
	api.fail(errors.New("etcd is away"))
	if _, err := a.Authenticate(t.Context(), tok); !errors.Is(err, server.ErrUnavailable) || !strings.Contains(err.Error(), "etcd is away") {
		t.Errorf("got %v", err)
	}
	api.fail(nil)
	api.know(tok, accepted("culvert-system", "culvert-node", "pod", "uid", ""))
	if _, err := a.Authenticate(t.Context(), tok); err != nil {
		t.Errorf("the failure is remembered: %v", err)
	}
}

// TestAuthenticateFlood has more bad tokens come than are remembered; the good
// one stays.
func TestAuthenticateFlood(t *testing.T) {
	c := newCluster(t)
	api := newReviews(c)
	a := newAuthenticator(t, c, nil)
	good := agentToken(t, "a", time.Now().Add(time.Hour))
	api.know(good, accepted("culvert-system", "culvert-node", "pod", "uid", ""))
	if _, err := a.Authenticate(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	for i := range 1500 {
		if _, err := a.Authenticate(t.Context(), agentToken(t, fmt.Sprint("flood ", i), time.Now().Add(time.Hour))); err == nil {
			t.Fatal("a forged token is accepted")
		}
	}
	before := api.count()
	if _, err := a.Authenticate(t.Context(), good); err != nil || api.count() != before {
		t.Errorf("the good token was forgotten: %v", err)
	}
}

// FuzzAuthenticate checks that no token but a known one passes, whatever it
// looks like.
func FuzzAuthenticate(f *testing.F) {
	c := newCluster(f)
	newReviews(c)
	a := newAuthenticator(f, c, nil)
	f.Add("")
	f.Add("a.b.c")
	f.Add(agentToken(f, "a", time.Now().Add(time.Hour)))
	f.Add(token(f, map[string]any{"aud": []any{1, nil}, "exp": "soon"}))
	f.Fuzz(func(t *testing.T, tok string) {
		if caller, err := a.Authenticate(t.Context(), tok); err == nil {
			t.Fatalf("%q is %s", tok, caller)
		}
	})
}
