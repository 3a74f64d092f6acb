package kubeca

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/culvert-mesh/culvert/identity/ca/server"
)

// DefaultAudience is what agents' tokens are made for, as in Istio.
const DefaultAudience = "istio-ca"

const (
	defaultCacheFor = 30 * time.Second
	refusedFor      = 5 * time.Second
	maxAccepted     = 10000
	maxRefused      = 1000
	maxTokenLength  = 16 << 10

	// Reviews at a time, in all and of tokens that come from one address. Their rate is bounded by the client, in which each
	// waits for those before it: so whoever comes to the client waits for few.
	maxReviews      = 16
	maxReviewsOfOne = 4
	// maxWaiting is more than an agent ever has: all its calls have one token, which is asked for once.
	maxWaiting = 256

	// What the API server says of a token that is bound to a pod.
	extraPodName  = "authentication.kubernetes.io/pod-name"
	extraPodUID   = "authentication.kubernetes.io/pod-uid"
	extraNodeName = "authentication.kubernetes.io/node-name"
)

// AuthenticatorConfig configures an Authenticator.
type AuthenticatorConfig struct {
	// Client reaches the API server. Required; it needs create on
	// tokenreviews.
	Client kubernetes.Interface
	// Audiences are those that a token may be for; empty means "istio-ca".
	Audiences []string
	// CacheFor is how long an answer may be used again; 0 means 30 s. It is
	// never used beyond the token's end.
	CacheFor time.Duration
	// Clock returns the time; nil means time.Now.
	Clock func() time.Time
}

// Authenticator finds out by TokenReview whose token it is. Only tokens of
// service accounts that are bound to a pod count. Those who ask for reviews take
// turns by their addresses, so that nobody can use them up with bad tokens.
type Authenticator struct {
	cfg     AuthenticatorConfig
	reviews *turns

	mu       sync.Mutex
	accepted memory[server.Caller]
	refused  memory[error]
}

// NewAuthenticator makes an Authenticator.
func NewAuthenticator(cfg AuthenticatorConfig) (*Authenticator, error) {
	if cfg.Client == nil {
		return nil, errors.New("make authenticator: no client")
	}
	if len(cfg.Audiences) == 0 {
		cfg.Audiences = []string{DefaultAudience}
	}
	if cfg.CacheFor == 0 {
		cfg.CacheFor = defaultCacheFor
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	return &Authenticator{
		cfg:      cfg,
		reviews:  newTurns(maxReviews, maxReviewsOfOne, maxWaiting),
		accepted: newMemory[server.Caller](maxAccepted),
		refused:  newMemory[error](maxRefused),
	}, nil
}

// Authenticate returns whose token it is. Errors never contain it. An error that
// wraps server.ErrUnavailable means that the API server did not decide. The
// context is that of a gRPC method, which tells the caller's address; all who
// come without one count as one.
func (a *Authenticator) Authenticate(ctx context.Context, token string) (server.Caller, error) {
	claims, err := a.readClaims(token)
	if err != nil {
		return server.Caller{}, err
	}
	key := sha256.Sum256([]byte(token))
	caller, known, err := a.remembered(key)
	if known || err != nil {
		return caller, err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	address := server.Address(ctx)
	if err := a.reviews.take(ctx, address); err != nil {
		return server.Caller{}, undecided(err)
	}
	defer a.reviews.leave(address)
	// Others before may have had the same token, as when an agent starts with all its pods.
	if caller, known, err = a.remembered(key); known || err != nil {
		return caller, err
	}
	status, err := a.review(ctx, token)
	if err != nil {
		return server.Caller{}, undecided(err)
	}
	caller, err = a.judge(status)
	a.remember(key, caller, err, claims)
	return caller, err
}

func undecided(err error) error {
	return fmt.Errorf("review token: %w: %w", server.ErrUnavailable, err)
}

// claims is what a token says about itself. It is believed only so far as it is
// to its own disadvantage.
type claims struct {
	Audience audience `json:"aud"`
	Expiry   float64  `json:"exp"`
}

// audience is one string or several (RFC 7519 section 4.1.3).
type audience []string

// UnmarshalJSON implements json.Unmarshaler.
func (a *audience) UnmarshalJSON(raw []byte) error {
	var one string
	if json.Unmarshal(raw, &one) == nil {
		*a = audience{one}
		return nil
	}
	var many []string
	err := json.Unmarshal(raw, &many)
	*a = many
	return err
}

// readClaims looks into the token, so that what the API server would refuse
// anyway does not cost it a review.
func (a *Authenticator) readClaims(token string) (claims, error) {
	if len(token) > maxTokenLength {
		return claims{}, fmt.Errorf("the token has %d octets, limit is %d", len(token), maxTokenLength)
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return claims{}, errors.New("the token is no JSON web token")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return claims{}, errors.New("the token is no JSON web token")
	}
	var c claims
	if err := json.Unmarshal(payload, &c); err != nil {
		return claims{}, errors.New("the token's claims cannot be read")
	}
	if !slices.ContainsFunc(c.Audience, a.isAudience) {
		return claims{}, errors.New("the token is not for this audience")
	}
	return c, nil
}

func (a *Authenticator) isAudience(s string) bool { return slices.Contains(a.cfg.Audiences, s) }

// review asks the API server.
func (a *Authenticator) review(ctx context.Context, token string) (*authenticationv1.TokenReviewStatus, error) {
	review, err := a.cfg.Client.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: a.cfg.Audiences},
	}, metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	return &review.Status, nil
}

// judge reads the API server's answer.
func (a *Authenticator) judge(status *authenticationv1.TokenReviewStatus) (server.Caller, error) {
	if !status.Authenticated {
		if status.Error != "" {
			return server.Caller{}, fmt.Errorf("the API server refuses the token: %s", status.Error)
		}
		return server.Caller{}, errors.New("the API server refuses the token")
	}
	// An API server that does not know of audiences answers with none: then the
	// token may have been made for somebody else.
	if !slices.ContainsFunc(status.Audiences, a.isAudience) {
		return server.Caller{}, errors.New("the token is not for this audience")
	}
	parts := strings.Split(status.User.Username, ":")
	if len(parts) != 4 || parts[0] != "system" || parts[1] != "serviceaccount" || parts[2] == "" || parts[3] == "" {
		return server.Caller{}, fmt.Errorf("the token is that of %q, which is no service account", status.User.Username)
	}
	c := server.Caller{
		Namespace:      parts[2],
		ServiceAccount: parts[3],
		PodName:        extra(status.User, extraPodName),
		PodUID:         extra(status.User, extraPodUID),
		Node:           extra(status.User, extraNodeName),
	}
	if c.PodName == "" || c.PodUID == "" {
		return server.Caller{}, fmt.Errorf("the token of %s/%s is not bound to a pod", c.Namespace, c.ServiceAccount)
	}
	return c, nil
}

func extra(user authenticationv1.UserInfo, key string) string {
	if values := user.Extra[key]; len(values) == 1 {
		return values[0]
	}
	return ""
}

// remembered returns an earlier answer about the same token.
func (a *Authenticator) remembered(key [sha256.Size]byte) (server.Caller, bool, error) {
	now := a.cfg.Clock()
	a.mu.Lock()
	defer a.mu.Unlock()
	if err, ok := a.refused.get(key, now); ok {
		return server.Caller{}, false, err
	}
	caller, ok := a.accepted.get(key, now)
	return caller, ok, nil
}

// remember keeps an answer: a yes to the token's end at most, a no for a moment.
// They are kept apart, so that a flood of bad tokens does not push out the good.
func (a *Authenticator) remember(key [sha256.Size]byte, caller server.Caller, err error, c claims) {
	now := a.cfg.Clock()
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		a.refused.put(key, err, now, now.Add(refusedFor))
		return
	}
	until := now.Add(a.cfg.CacheFor)
	if end := time.Unix(int64(min(max(c.Expiry, 0), 1<<40)), 0); end.Before(until) {
		until = end
	}
	a.accepted.put(key, caller, now, until)
}

// memory is a bounded map of answers by the hash of the token.
type memory[V any] struct {
	limit   int
	entries map[[sha256.Size]byte]remembered[V]
}

type remembered[V any] struct {
	value V
	until time.Time
}

func newMemory[V any](limit int) memory[V] {
	return memory[V]{limit: limit, entries: make(map[[sha256.Size]byte]remembered[V])}
}

func (m memory[V]) get(key [sha256.Size]byte, now time.Time) (V, bool) {
	e, ok := m.entries[key]
	if !ok || !now.Before(e.until) {
		var none V
		return none, false
	}
	return e.value, true
}

// put keeps a value. A full memory forgets what is over, and one other if
// nothing is.
func (m memory[V]) put(key [sha256.Size]byte, value V, now, until time.Time) {
	if !now.Before(until) {
		return
	}
	if len(m.entries) >= m.limit {
		for k, e := range m.entries {
			if !now.Before(e.until) {
				delete(m.entries, k)
			}
		}
	}
	for k := range m.entries {
		if len(m.entries) < m.limit {
			break
		}
		delete(m.entries, k)
	}
	m.entries[key] = remembered[V]{value, until}
}
