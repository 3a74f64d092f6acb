// Package dns decides what a captured DNS question is answered with: the
// addresses of a service that the mesh knows, an empty answer, or the upstream
// server that the application asked.
//
// It is pure: a question, a client and one snapshot of the store go in, an
// Answer comes out. Wire format, sockets and forwarding belong to dns/server.
//
// A Resolver is immutable and may be used by any number of goroutines.
package dns

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"

	"github.com/culvert-mesh/culvert/workload"
)

// TTL is the life of every record answered from the store, in seconds. It is
// short because an answer is only as old as the store's last update.
const TTL = 30

// Record types that are answered from the store; all others are forwarded.
const (
	TypeA    uint16 = 1
	TypeAAAA uint16 = 28
)

// Outcome says what becomes of a question.
type Outcome uint8

const (
	// Forward: the mesh does not know the name (or the type); the upstream
	// server's answer is the answer.
	Forward Outcome = iota
	// Addresses: the name is a service with at least one address.
	Addresses
	// NoData: the name is known but has no record of that type; NOERROR without
	// records, never NXDOMAIN, so that clients go on to the other family.
	NoData
)

// String returns the word used in logs.
func (o Outcome) String() string {
	switch o {
	case Addresses:
		return "addresses"
	case NoData:
		return "no data"
	default:
		return "forward"
	}
}

// Answer is the decision for one question.
type Answer struct {
	Outcome Outcome
	// Reason is a constant text for the log.
	Reason string
	// Service is the service that answered; nil with Forward.
	Service *workload.Service
	// Canonical is set (fully qualified) when the name was found after stripping a
	// search domain: the answer then begins with a CNAME from the question's name
	// to Canonical, and the address records carry Canonical as their name.
	Canonical string
	// Addrs are the addresses in the order to be sent, all of the type asked for.
	Addrs []netip.Addr
}

// Client is the pod that asks.
type Client struct {
	Namespace string
	Network   string
	// Search lists the search domains that the pod's resolver appends. Nil means
	// those of Kubernetes: <namespace>.svc.<domain>, svc.<domain>, <domain>.
	Search []string
}

// Config configures a Resolver. The zero value is usable.
type Config struct {
	// Domain is the cluster domain. Empty means "cluster.local".
	Domain string
	// PreferredNamespace breaks a tie among services of one hostname after the
	// client's own namespace and the canonical service. Empty means none.
	PreferredNamespace string
	// DisableIPv6 answers AAAA questions for known names with no records.
	DisableIPv6 bool
	// Shuffle orders the answer's addresses; nil means at random, so that clients
	// which take the first one spread over a headless service. It must be safe for
	// concurrent use. A seam for tests.
	Shuffle func(n int, swap func(i, j int))
}

// Resolver answers questions from snapshots of the store.
type Resolver struct {
	domain    string // without dots at either end
	svcDomain string // "svc." + domain
	suffix    string // "." + svcDomain
	preferred string
	noIPv6    bool
	shuffle   func(n int, swap func(i, j int))
}

// New returns a Resolver, or an error that names the faulty setting.
func New(c Config) (*Resolver, error) {
	domain := strings.ToLower(strings.Trim(c.Domain, "."))
	if domain == "" {
		if c.Domain != "" {
			return nil, errors.New("configure dns: cluster domain has no label")
		}
		domain = "cluster.local"
	}
	if strings.Contains(domain, "..") || strings.ContainsAny(domain, `\* /`) || len(domain) > 200 {
		return nil, fmt.Errorf("configure dns: cluster domain %q is not a domain name", c.Domain)
	}
	r := &Resolver{
		domain:    domain,
		svcDomain: "svc." + domain,
		suffix:    ".svc." + domain,
		preferred: c.PreferredNamespace,
		noIPv6:    c.DisableIPv6,
		shuffle:   c.Shuffle,
	}
	if r.shuffle == nil {
		r.shuffle = rand.Shuffle
	}
	return r, nil
}
