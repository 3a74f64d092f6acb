package nft

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
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

// transact sends what fill queues as one batch, in the current namespace.
func transact(fill func(*nftables.Conn) error) error {
	c, err := nftables.New()
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

// Read returns the capture table that ns has now, or nil when it has none.
func Read(ns *netns.NS) (*Table, error) { return ReadTable(ns, FamilyInet, TableName) }

// ReadTable returns a table that ns has now, or nil when it has none. What it does not
// understand in it is there as text.
func ReadTable(ns *netns.NS, family Family, name string) (*Table, error) {
	var t *Table
	err := ns.Do(func() error {
		var err error
		for range 5 { // a dump is interrupted when somebody changes rules meanwhile
			if t, err = read(family, name); !errors.Is(err, netlink.ErrDumpInterrupted) {
				return err
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read nftables table %s %s in %s: %w", family, name, ns, err)
	}
	return t, nil
}

// maxTable is how much of a table is read, in bytes of the kernel's messages. A table
// of ours with all that options may ask for has a third of it; a process in the
// namespace may have added to it what it likes.
const maxTable = 8 << 20

// reading is a table of which so many bytes may still be read.
type reading struct {
	*Table
	left int
}

// takes reports whether f, a part of the table, may be kept.
func (r *reading) takes(f fields) bool {
	for _, a := range f {
		r.left -= len(a.data)
	}
	r.cut = r.cut || r.left < 0
	return !r.cut
}

func read(family Family, name string) (*Table, error) {
	var t *reading
	err := family.dump(unix.NFT_MSG_GETTABLE, nil, func(f fields) {
		if f.text(unix.NFTA_TABLE_NAME) == name {
			t = &reading{&Table{Family: family, Name: name, Flags: f.uint32(unix.NFTA_TABLE_FLAGS)}, maxTable}
		}
	})
	if err != nil || t == nil {
		return nil, err
	}
	err = family.dump(unix.NFT_MSG_GETSET, named(unix.NFTA_SET_TABLE, name), func(f fields) {
		if f.text(unix.NFTA_SET_TABLE) == name && t.takes(f) {
			t.Sets = append(t.Sets, parseSet(f))
		}
	})
	if err != nil {
		return nil, err
	}
	for i := range t.Sets {
		if err := t.readElements(&t.Sets[i]); err != nil {
			return nil, err
		}
	}
	err = family.dump(unix.NFT_MSG_GETCHAIN, nil, func(f fields) {
		if f.text(unix.NFTA_CHAIN_TABLE) == name && t.takes(f) {
			t.Chains = append(t.Chains, parseChain(f))
		}
	})
	if err != nil {
		return nil, err
	}
	var bad error
	err = family.dump(unix.NFT_MSG_GETRULE, named(unix.NFTA_RULE_TABLE, name), func(f fields) {
		c := t.Chain(f.text(unix.NFTA_RULE_CHAIN))
		if c == nil || f.text(unix.NFTA_RULE_TABLE) != name || !t.takes(f) {
			return
		}
		r, err := parseRule(f)
		if bad == nil {
			bad = err
		}
		c.Rules = append(c.Rules, r)
	})
	return t.Table, errors.Join(err, bad)
}

func (r *reading) readElements(s *Set) error {
	filter := append(named(unix.NFTA_SET_ELEM_LIST_TABLE, r.Name), named(unix.NFTA_SET_ELEM_LIST_SET, s.Name)...)
	err := r.Family.dump(unix.NFT_MSG_GETSETELEM, filter, func(f fields) {
		if r.takes(f) {
			s.Elements = append(s.Elements, parseElements(f.bytes(unix.NFTA_SET_ELEM_LIST_ELEMENTS))...)
		}
	})
	s.sort()
	s.Elements = slices.Compact(s.Elements) // of a set that is not ours, and grows just now, some come twice
	return err
}

// Generation returns the number of the last change that anybody has made to the
// nftables of ns. As long as it stays the same, what Read returns does too.
func Generation(ns *netns.NS) (uint32, error) {
	var id uint32
	err := ns.Do(func() error {
		return FamilyInet.request(unix.NFT_MSG_GETGEN, 0, nil, func(f fields) { id = f.uint32(unix.NFTA_GEN_ID) })
	})
	if err != nil {
		return 0, fmt.Errorf("read nftables generation of %s: %w", ns, err)
	}
	return id, nil
}

// named is an attribute that holds a name.
func named(kind int, name string) []*nl.RtAttr {
	return []*nl.RtAttr{nl.NewRtAttr(kind, nl.ZeroTerminated(name))}
}

// dump asks for all objects of one kind in the family, in the current namespace.
func (f Family) dump(kind int, filter []*nl.RtAttr, each func(fields)) error {
	return f.request(kind, unix.NLM_F_DUMP, filter, each)
}

func (f Family) request(kind, flags int, filter []*nl.RtAttr, each func(fields)) error {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: f.number(), Version: nl.NFNETLINK_V0})
	for _, a := range filter {
		req.AddData(a)
	}
	return req.ExecuteIter(unix.NETLINK_NETFILTER, 0, func(m []byte) bool {
		if len(m) >= nl.SizeofNfgenmsg {
			each(parseFields(m[nl.SizeofNfgenmsg:]))
		}
		return true
	})
}

func parseChain(f fields) Chain {
	c := Chain{Name: f.text(unix.NFTA_CHAIN_NAME)}
	if hook, ok := f.get(unix.NFTA_CHAIN_HOOK); ok {
		h := parseFields(hook)
		c.Type = f.text(unix.NFTA_CHAIN_TYPE)
		c.Priority = int(int32(h.uint32(unix.NFTA_HOOK_PRIORITY)))
		c.Drop = f.uint32(unix.NFTA_CHAIN_POLICY) == uint32(nftables.ChainPolicyDrop)
		if num := h.uint32(unix.NFTA_HOOK_HOOKNUM); int(num) < len(hooks) {
			c.Hook = hooks[num]
		} else {
			c.Hook = fmt.Sprint(num)
		}
	}
	return c
}

func parseRule(f fields) (Rule, error) {
	var elems []element
	for _, data := range attrs(f.bytes(unix.NFTA_RULE_EXPRESSIONS)) {
		e, err := parseElement(data)
		if err != nil {
			return Rule{}, fmt.Errorf("read rule of chain %s: %w", f.text(unix.NFTA_RULE_CHAIN), err)
		}
		elems = append(elems, e)
	}
	return Rule{Text: render(elems), Comment: parseComment(f.bytes(unix.NFTA_RULE_USERDATA))}, nil
}

// parseComment finds the comment in the user data of a rule: entries of type,
// length and value, each one byte, the value of a comment with a final zero.
func parseComment(b []byte) string {
	for len(b) >= 2 && len(b) >= 2+int(b[1]) {
		if b[0] == byte(userdata.TypeComment) {
			return cString(b[2 : 2+int(b[1])])
		}
		b = b[2+int(b[1]):]
	}
	return ""
}
