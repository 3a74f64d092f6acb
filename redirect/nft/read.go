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

// Read returns the capture table that ns has now, or nil when it has none.
func Read(ns *netns.NS) (*Table, error) { return ReadTable(ns, FamilyInet, TableName) }

// ReadTable returns a table that ns has now, or nil when it has none. What it does not
// understand in it is there as text.
func ReadTable(ns *netns.NS, family Family, name string) (*Table, error) {
	var t *Table
	err := ns.Do(func() error {
		var err error
		for range 5 { // somebody may change rules meanwhile: then a dump is interrupted, or what it is about has gone
			t, err = read(family, name)
			if !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.ENOENT) {
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
// of ours with all that options may ask for has about half of it; a process in the
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
