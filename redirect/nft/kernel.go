package nft

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/redirect/netns"
)

// hooks are the netfilter hooks of family inet by number.
var hooks = [...]string{
	unix.NF_INET_PRE_ROUTING:  "prerouting",
	unix.NF_INET_LOCAL_IN:     "input",
	unix.NF_INET_FORWARD:      "forward",
	unix.NF_INET_LOCAL_OUT:    "output",
	unix.NF_INET_POST_ROUTING: "postrouting",
}

// number is the kernel's name of the family.
func (f Family) number() byte {
	if f == FamilyBridge {
		return unix.NFPROTO_BRIDGE
	}
	return unix.NFPROTO_INET
}

// Apply makes the kernel's table in ns exactly t, in one transaction: a packet
// meets the old rules or the new ones, and connection tracking goes on in between,
// so that established connections keep their translation. Nothing is changed when
// an error is returned. t must come from this package.
func (t *Table) Apply(ns *netns.NS) error { return ApplyAll(ns, nil, t) }

// ApplyAll is Apply for several tables in one transaction. within, unless it is nil,
// calls what it is given on the same thread, inside another namespace of some kind
// (SocketOwner.Levels says why).
func ApplyAll(ns *netns.NS, within func(f func() error) error, tables ...*Table) error {
	if within == nil {
		within = func(f func() error) error { return f() }
	}
	err := ns.Do(func() error {
		return within(func() error {
			return transact(func(c *nftables.Conn) error {
				var errs []error
				for _, t := range tables {
					errs = append(errs, t.queue(c))
				}
				return errors.Join(errs...)
			})
		})
	})
	if err != nil {
		return fmt.Errorf("apply nftables %v in %s: %w", tables, ns, err)
	}
	return nil
}

// queue adds to a transaction that the table is replaced.
func (t *Table) queue(c *nftables.Conn) error {
	table := remove(c, t.Family, t.Name)
	c.AddTable(table)
	for i, s := range t.Sets {
		if err := s.queue(c, table, i+1); err != nil {
			return err
		}
	}
	chains := make([]*nftables.Chain, len(t.Chains)) // all of them first, for the jumps
	for i, chain := range t.Chains {
		chains[i] = chain.queue(c, table)
	}
	for i, chain := range t.Chains {
		chain.queueRules(c, chains[i])
	}
	return nil
}

// remove adds to a transaction that a table is not there.
func remove(c *nftables.Conn, family Family, name string) *nftables.Table {
	table := &nftables.Table{Name: name, Family: nftables.TableFamily(family.number())}
	c.AddTable(table) // so that deleting it never fails
	c.DelTable(table)
	return table
}

// Delete removes the capture table from ns, if it is there. Connections that are
// redirected lose their translation and stall; drain them before.
func Delete(ns *netns.NS) error { return DeleteTable(ns, FamilyInet, TableName) }

// DeleteTable removes a table from ns, if it is there.
func DeleteTable(ns *netns.NS, family Family, name string) error {
	err := ns.Do(func() error {
		return transact(func(c *nftables.Conn) error {
			remove(c, family, name)
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("delete nftables table %s %s in %s: %w", family, name, ns, err)
	}
	return nil
}

// maxTransaction is how long a transaction can be, in bytes: enough for all that options
// may ask for. It is sent at once and then answered part by part, so that a socket has to
// hold all of it; the kernel's default ends at some thousand addresses or 300 rules.
const maxTransaction = 8 << 20

// roomy makes a socket hold as much, or as the system allows to who is not privileged
// outside of user namespaces.
func roomy(c *netlink.Conn) error {
	return errors.Join(c.SetWriteBuffer(maxTransaction), c.SetReadBuffer(maxTransaction))
}

// transact sends what fill queues as one batch, in the current namespace.
func transact(fill func(*nftables.Conn) error) error {
	c, err := nftables.New(nftables.WithSockOptions(roomy))
	if err != nil {
		return err
	}
	if err := fill(c); err != nil {
		return err
	}
	return c.Flush()
}

func (c Chain) queue(conn *nftables.Conn, table *nftables.Table) *nftables.Chain {
	chain := &nftables.Chain{Name: c.Name, Table: table}
	if c.Hook != "" {
		policy := nftables.ChainPolicyAccept
		if c.Drop {
			policy = nftables.ChainPolicyDrop
		}
		chain.Type = nftables.ChainType(c.Type)
		chain.Hooknum = nftables.ChainHookRef(nftables.ChainHook(slices.Index(hooks[:], c.Hook)))
		chain.Priority = nftables.ChainPriorityRef(nftables.ChainPriority(c.Priority))
		chain.Policy = &policy
	}
	return conn.AddChain(chain)
}

func (c Chain) queueRules(conn *nftables.Conn, chain *nftables.Chain) {
	for _, r := range c.Rules {
		rule := &nftables.Rule{Table: chain.Table, Chain: chain, Exprs: r.exprs}
		if r.Comment != "" {
			rule.UserData = userdata.AppendString(nil, userdata.TypeComment, r.Comment)
		}
		conn.AddRule(rule)
	}
}
