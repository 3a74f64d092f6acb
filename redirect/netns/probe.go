package netns

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Feature is something that this package's users need of the process or the kernel.
type Feature string

// The features, in the order in which they are probed.
const (
	CapNetAdmin      Feature = "capability CAP_NET_ADMIN"
	CapSysAdmin      Feature = "capability CAP_SYS_ADMIN"
	SocketMark       Feature = "socket option SO_MARK"
	TransparentTCP   Feature = "socket option IP_TRANSPARENT"
	EnterNamespace   Feature = "setns into a network namespace"
	NFTables         Feature = "nf_tables"
	ConnTracking     Feature = "connection tracking in nf_tables (nft_ct)"
	NATRedirect      Feature = "NAT and redirect in nf_tables (nft_chain_nat, nft_redir)"
	PolicyRouting    Feature = "policy routing (CONFIG_IP_MULTIPLE_TABLES)"
	ConntrackNetlink Feature = "connection tracking over netlink (nf_conntrack_netlink)"
)

// purpose says what fails without a feature, and what provides it.
func (f Feature) purpose() string {
	switch f {
	case CapNetAdmin:
		return "writing capture rules and marking sockets needs it"
	case CapSysAdmin:
		return "entering the namespaces of pods needs it"
	case SocketMark:
		return "without it the agent would capture its own traffic"
	case TransparentTCP:
		return "the application could not see its client's address"
	case EnterNamespace:
		return "listeners cannot be opened inside pods"
	case NFTables:
		return "no traffic can be captured; it needs CONFIG_NF_TABLES_INET"
	case ConnTracking:
		return "no traffic can be captured; it needs CONFIG_NFT_CT"
	case NATRedirect:
		return "no traffic can be captured; it needs Linux 5.2, CONFIG_NFT_NAT and CONFIG_NFT_REDIR"
	case PolicyRouting:
		return "answers of applications would not find the agent"
	case ConntrackNetlink:
		return "the server that a DNS query was sent to cannot be found out"
	}
	return "the agent needs it"
}

// MissingError says that a feature is not there.
type MissingError struct {
	Feature Feature
	Err     error // what was tried and failed; may be nil for a capability
}

// Error names the feature, what it is for, and the kernel's answer.
func (e *MissingError) Error() string {
	text := fmt.Sprintf("%s is missing: %s", e.Feature, e.Feature.purpose())
	if e.Err != nil {
		text += fmt.Sprintf(" (%v)", e.Err)
	}
	return text
}

// Unwrap returns the kernel's answer.
func (e *MissingError) Unwrap() error { return e.Err }

// Needs says what is going to be done, so what must be there.
type Needs struct {
	Namespaces bool // enter namespaces of others (a node agent)
	Capture    bool // write capture rules
}

// Probe tries what is needed and returns all that is missing as joined
// *MissingErrors, or nil. It tries in a scratch namespace where it may make one, and
// otherwise in the current namespace, in transactions that undo themselves.
func Probe(needs Needs) error {
	missing := probeCapabilities(needs)
	if len(missing) > 0 {
		return join(missing) // the rest would only say EPERM
	}
	scratch, err := New()
	switch {
	case err == nil:
		defer func() { _ = scratch.Close() }()
	case needs.Namespaces:
		return &MissingError{EnterNamespace, err}
	default:
		if scratch, err = Current(); err != nil {
			return err
		}
		defer func() { _ = scratch.Close() }()
	}
	err = scratch.Do(func() error {
		missing = append(missing, probeSockets()...)
		if needs.Capture {
			missing = append(missing, probeRules()...)
		}
		return nil
	})
	if err != nil {
		return &MissingError{EnterNamespace, err}
	}
	return join(missing)
}

func join(missing []*MissingError) error {
	errs := make([]error, len(missing))
	for i, m := range missing {
		errs[i] = m
	}
	return errors.Join(errs...)
}

func probeCapabilities(needs Needs) []*MissingError {
	have, err := capabilities()
	var missing []*MissingError
	check := func(wanted bool, bit int, f Feature) {
		if wanted && (err != nil || have&(1<<bit) == 0) {
			missing = append(missing, &MissingError{f, err})
		}
	}
	check(true, unix.CAP_NET_ADMIN, CapNetAdmin)
	check(needs.Namespaces, unix.CAP_SYS_ADMIN, CapSysAdmin)
	return missing
}

// capabilities returns the effective capabilities of the calling thread.
func capabilities() (uint64, error) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData // version 3 has two words
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return 0, fmt.Errorf("read capabilities: %w", err)
	}
	return uint64(data[0].Effective) | uint64(data[1].Effective)<<32, nil
}

func probeSockets() []*MissingError {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return []*MissingError{{SocketMark, err}}
	}
	defer func() { _ = unix.Close(fd) }()
	var missing []*MissingError
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, 1); err != nil {
		missing = append(missing, &MissingError{SocketMark, err})
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1); err != nil {
		missing = append(missing, &MissingError{TransparentTCP, err})
	}
	return missing
}

func probeRules() []*MissingError {
	var missing []*MissingError
	check := func(f Feature, err error) {
		if err != nil {
			missing = append(missing, &MissingError{f, err})
		}
	}
	check(NFTables, tryRule(nftables.ChainTypeFilter))
	if len(missing) == 0 {
		check(ConnTracking, tryRule(nftables.ChainTypeFilter, &expr.Ct{Key: expr.CtKeyMARK, Register: unix.NFT_REG_1}))
		port := &expr.Immediate{Register: unix.NFT_REG_1, Data: []byte{0, 1}}
		check(NATRedirect, tryRule(nftables.ChainTypeNAT, port, &expr.Redir{RegisterProtoMin: unix.NFT_REG_1}))
		_, err := netlink.ConntrackTableList(netlink.ConntrackTable, netlink.FAMILY_V4)
		check(ConntrackNetlink, err)
	}
	_, err := netlink.RuleList(netlink.FAMILY_V4)
	check(PolicyRouting, err)
	return missing
}

// tryRule asks the kernel to make a table with one rule and to delete it again, all in
// one transaction: nothing ever is in effect.
func tryRule(kind nftables.ChainType, exprs ...expr.Any) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	table := c.AddTable(&nftables.Table{Name: "culvert_probe", Family: nftables.TableFamilyINet})
	chain := c.AddChain(&nftables.Chain{
		Name: "output", Table: table, Type: kind,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityRef(0),
	})
	if len(exprs) > 0 {
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: exprs})
	}
	c.DelTable(table)
	return c.Flush()
}
