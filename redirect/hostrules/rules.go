package hostrules

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"

	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/nft"
)

// Mark is the DSCP that the kubelet's connections carry. It is of pool 2, which is for
// local use (RFC 2474 section 6).
const Mark = nft.ProbeDSCP

// Config describes Rules.
type Config struct {
	// NS is the host's network namespace, the kubelet's. Required, and the caller's.
	NS *netns.NS
	// Kubelet finds the node's kubelet; normally it calls FindKubelet. Required. It is
	// asked with every Apply, Verify and Repair. While it fails, what was found last
	// stays; before the first success nobody's connections are marked.
	Kubelet func() (Kubelet, error)
	// Logger hears of a kubelet that was found, changed or lost. nil discards.
	Logger *slog.Logger
}

// Rules are the rules of one node.
type Rules struct {
	cfg Config
}

// Kind says what a Finding is about.
type Kind string

// The kinds of findings. The first three are damage, and Repair's work; the others are
// what the node leaves open, or takes away.
const (
	KindRules   Kind = "rules"   // the tables differ from what they should be
	KindMoved   Kind = "moved"   // the kubelet has another uid or cgroup than the rules say
	KindForged  Kind = "forged"  // a mark that the kubelet did not set got through
	KindMissing Kind = "missing" // no kubelet was found: its probes meet the policy like everybody
	KindUID     Kind = "uid"     // other processes share what the kubelet is known by
	KindShared  Kind = "shared"  // the kubelet's process is the API server too, or more
	KindBridge  Kind = "bridge"  // the kernel cannot filter bridges: neighbours on one can forge the mark
)

// Finding is something that is not as it should be, or not as narrow as it could be.
type Finding struct {
	Kind Kind
	Text string // in words, with the names of things
}

// String returns "kind: text".
func (f Finding) String() string { return string(f.Kind) + ": " + f.Text }

// New returns the rules of a node and adopts the pods that an earlier process has left
// in the kernel. Nothing is changed yet.
func New(cfg Config) (*Rules, error) {
	if cfg.NS == nil || cfg.Kubelet == nil {
		return nil, errors.New("make host rules: NS and Kubelet are required")
	}
	return &Rules{cfg: cfg}, nil
}

// Apply makes the rules hold exactly for pods, address to pod UID, whatever was there
// before, in one transaction. When it fails, nothing has changed in the kernel, and
// Repair will try again.
func (r *Rules) Apply(pods map[netip.Addr]string) error { return errors.ErrUnsupported }

// Add marks the kubelet's connections to addr, which belongs to the pod uid now, also
// when another had it before.
func (r *Rules) Add(addr netip.Addr, uid string) error { return errors.ErrUnsupported }

// Remove ends what Add has begun, unless addr belongs to another pod by now.
func (r *Rules) Remove(addr netip.Addr, uid string) error { return errors.ErrUnsupported }

// Verify compares the kernel with what should be, and the kubelet with what the rules
// say of it. It returns the damage (KindRules, KindMoved), none when all is well.
func (r *Rules) Verify() ([]Finding, error) { return nil, errors.ErrUnsupported }

// Repair verifies and, when something differs, applies. It returns what it found and
// what of it is left.
func (r *Rules) Repair() (found, left []Finding, err error) { return nil, nil, errors.ErrUnsupported }

// SelfTest tries from this process, which is not the kubelet, to get through as the
// kubelet does, both plainly and with a forged mark, over the host's loopback
// interface. It returns what it found to be open, and what is known to be.
func (r *Rules) SelfTest(ctx context.Context) ([]Finding, error) { return nil, errors.ErrUnsupported }

// Delete removes everything. Deleting what is not there is no error.
func (r *Rules) Delete() error { return errors.ErrUnsupported }

// Text returns the rules that the kernel has, as canonical text, for people to read.
func (r *Rules) Text() (string, error) { return "", errors.ErrUnsupported }
