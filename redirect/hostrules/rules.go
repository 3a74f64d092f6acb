package hostrules

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

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
	cfg      Config
	noCgroup error // why sockets cannot be told by cgroup, nil when they can
	noBridge error // why bridges cannot be filtered, nil when they can

	turn sync.Mutex // held during one method, with its calls to the kernel
	pods map[netip.Addr]string
	// kubelet is what was found last, and found says whether that ever was.
	kubelet Kubelet
	found   bool
	trouble string // the last failure to find it
	// clean is the generation of nftables that was found to be right; zero when none
	// was since the last change here.
	clean uint32
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
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	r := &Rules{cfg: cfg, pods: map[netip.Addr]string{}}
	have, err := nft.ReadTable(cfg.NS, nft.FamilyInet, nft.HostTableName)
	if err != nil {
		return nil, fmt.Errorf("make host rules: %w", err)
	}
	maps.Copy(r.pods, have.Pods())
	// Of the self-test, or by hand.
	maps.DeleteFunc(r.pods, func(addr netip.Addr, uid string) bool { return checkPod(addr, uid) != nil })
	r.noCgroup = nft.TryFeature(cfg.NS, nft.FeatureCgroup)
	r.noBridge = nft.TryFeature(cfg.NS, nft.FeatureBridge)
	for _, err := range []error{r.noCgroup, r.noBridge} {
		if err != nil {
			cfg.Logger.Warn("kernel lacks a feature for the kubelet's probes", "error", err)
		}
	}
	return r, nil
}

// Apply makes the rules hold exactly for pods, address to pod UID, whatever was there
// before, in one transaction. What cannot be of a pod is left out, which the error says
// of each. When the kernel refuses, nothing has changed there, and Repair will try again.
func (r *Rules) Apply(pods map[netip.Addr]string) error {
	r.turn.Lock()
	defer r.turn.Unlock()
	fresh := make(map[netip.Addr]string, len(pods))
	var errs []error
	for _, addr := range slices.SortedFunc(maps.Keys(pods), netip.Addr.Compare) {
		if err := checkPod(addr, pods[addr]); err != nil {
			errs = append(errs, err)
			continue
		}
		fresh[addr.Unmap()] = pods[addr]
	}
	r.pods = fresh
	r.lookLocked()
	return errors.Join(append(errs, r.applyLocked())...)
}

// Add marks the kubelet's connections to addr, which belongs to the pod uid now, also
// when another had it before. When the kernel refuses, Repair will try again.
func (r *Rules) Add(addr netip.Addr, uid string) error {
	if err := checkPod(addr, uid); err != nil {
		return err
	}
	addr = addr.Unmap()
	r.turn.Lock()
	defer r.turn.Unlock()
	if have, ok := r.pods[addr]; ok && have == uid && r.clean != 0 {
		return nil
	}
	r.pods[addr] = uid
	r.lookLocked()
	return r.applyLocked()
}

// Remove ends what Add has begun, unless addr belongs to another pod by now.
func (r *Rules) Remove(addr netip.Addr, uid string) error {
	addr = addr.Unmap()
	r.turn.Lock()
	defer r.turn.Unlock()
	if have, ok := r.pods[addr]; !ok || have != uid {
		return nil
	}
	delete(r.pods, addr)
	r.lookLocked()
	return r.applyLocked()
}

func checkPod(addr netip.Addr, uid string) error {
	a := addr.Unmap()
	if !a.IsValid() || a.Zone() != "" || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() {
		return fmt.Errorf("add pod %q to host rules: %q is not the address of a pod", uid, addr)
	}
	if uid == "" || !nft.PlainComment(uid) {
		return fmt.Errorf("add pod at %s to host rules: %q is not the UID of a pod", addr, uid)
	}
	return nil
}

// Verify compares the kernel with what should be, and the kubelet with what the rules
// say of it. It returns the damage (KindRules, KindMoved), none when all is well.
func (r *Rules) Verify() ([]Finding, error) {
	r.turn.Lock()
	defer r.turn.Unlock()
	return r.verifyLocked()
}

// Repair verifies and, when something differs, applies. It returns what it found and
// what of it is left.
func (r *Rules) Repair() (found, left []Finding, err error) {
	r.turn.Lock()
	defer r.turn.Unlock()
	if found, err = r.verifyLocked(); err != nil || len(found) == 0 {
		return found, nil, err
	}
	if err = r.applyLocked(); err != nil {
		return found, found, err
	}
	left, err = r.verifyLocked()
	return found, left, err
}

// Delete removes everything. Deleting what is not there is no error.
func (r *Rules) Delete() error {
	r.turn.Lock()
	defer r.turn.Unlock()
	r.pods, r.clean = map[netip.Addr]string{}, 0
	err := nft.DeleteTable(r.cfg.NS, nft.FamilyInet, nft.HostTableName)
	if r.noBridge == nil {
		err = errors.Join(err, nft.DeleteTable(r.cfg.NS, nft.FamilyBridge, nft.HostTableName))
	}
	if err != nil {
		return fmt.Errorf("delete host rules: %w", err)
	}
	return nil
}

// Text returns the rules that the kernel has, as canonical text, for people to read.
func (r *Rules) Text() (string, error) {
	tables, err := r.read()
	var b strings.Builder
	for _, t := range tables {
		b.WriteString(t.Text())
	}
	return b.String(), err
}

// lookLocked looks for the kubelet again, and returns what it was before when the rules
// have to change.
func (r *Rules) lookLocked() (before Kubelet, moved bool) {
	if r.found && r.kubelet.PID != 0 && r.kubelet.still() {
		return Kubelet{}, false
	}
	k, err := r.cfg.Kubelet()
	if err != nil {
		if text := err.Error(); text != r.trouble {
			r.trouble = text
			r.cfg.Logger.Warn("kubelet not found", "known", r.found, "error", err)
		}
		return Kubelet{}, false
	}
	before, moved = r.kubelet, !r.found || !r.kubelet.same(k)
	if moved || r.trouble != "" {
		r.cfg.Logger.Info("kubelet found", "kubelet", k.String(), "before", before.String(), "cgroup_unknown", k.NoCgroup)
	}
	r.kubelet, r.found, r.trouble = k, true, ""
	if moved {
		r.clean = 0
	}
	return before, moved
}

// desiredLocked returns the tables that should be.
func (r *Rules) desiredLocked() ([]*nft.Table, error) {
	o := nft.HostOptions{Pods: r.pods}
	if r.found {
		o.Kubelet = &nft.SocketOwner{UID: r.kubelet.UID}
		if r.noCgroup == nil {
			o.Kubelet.CgroupID, o.Kubelet.Levels = r.kubelet.CgroupID, r.kubelet.Levels
		}
	}
	host, err := nft.DesiredHost(o)
	if err != nil || r.noBridge != nil {
		return []*nft.Table{host}, err
	}
	bridge, err := nft.DesiredBridge(o)
	return []*nft.Table{host, bridge}, err
}

func (r *Rules) applyLocked() error {
	r.clean = 0
	tables, err := r.desiredLocked()
	if err == nil {
		within := func(f func() error) error { return inCgroupNS(cgroupNS(r.kubelet.view), f) }
		if r.kubelet.CgroupID == 0 || r.kubelet.view == "" {
			within = nil
		}
		err = nft.ApplyAll(r.cfg.NS, within, tables...)
	}
	if err != nil {
		return fmt.Errorf("apply host rules: %w", err)
	}
	if _, err := r.verifyRulesLocked(); err != nil {
		return fmt.Errorf("verify host rules: %w", err)
	}
	return nil
}

func (r *Rules) verifyLocked() ([]Finding, error) {
	var found []Finding
	if before, moved := r.lookLocked(); moved {
		found = append(found, Finding{KindMoved, fmt.Sprintf("the kubelet is %s now and not %s", r.kubelet, before)})
	}
	texts, err := r.verifyRulesLocked()
	if err != nil {
		return nil, fmt.Errorf("verify host rules: %w", err)
	}
	for _, text := range texts {
		found = append(found, Finding{KindRules, text})
	}
	return found, nil
}

// verifyRulesLocked says how the kernel's tables differ from the desired ones.
func (r *Rules) verifyRulesLocked() ([]string, error) {
	generation, err := nft.Generation(r.cfg.NS)
	if err != nil || r.clean != 0 && generation == r.clean {
		return nil, err
	}
	want, err := r.desiredLocked()
	if err != nil {
		return nil, err
	}
	have, err := r.read()
	if err != nil {
		return nil, err
	}
	var texts []string
	for i := range want {
		for _, text := range nft.Diff(want[i], have[i]) {
			texts = append(texts, fmt.Sprintf("%s: %s", want[i].Family, text))
		}
	}
	if len(texts) == 0 {
		r.clean = generation // read before the rules, so later changes are seen
	}
	return texts, nil
}

// read returns the kernel's tables in the order of desiredLocked, nil for an absent one.
func (r *Rules) read() ([]*nft.Table, error) {
	host, err := nft.ReadTable(r.cfg.NS, nft.FamilyInet, nft.HostTableName)
	if err != nil || r.noBridge != nil {
		return []*nft.Table{host}, err
	}
	bridge, err := nft.ReadTable(r.cfg.NS, nft.FamilyBridge, nft.HostTableName)
	return []*nft.Table{host, bridge}, err
}
