package nft

import (
	"testing"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// FuzzParseRule reads rules that may be anything; what it says of them is one line.
func FuzzParseRule(f *testing.F) {
	t, err := Desired(Options{DNS: true, IPv6: true, Probes: true}, map[string]string{"k": "v"})
	if err != nil {
		f.Fatal(err)
	}
	for _, c := range t.Chains {
		for _, r := range c.Rules {
			f.Add(encodeRule(f, r))
		}
	}
	host, err := DesiredHost(HostOptions{Kubelet: &SocketOwner{UID: 1, CgroupID: 2, Levels: []uint32{1}}})
	if err != nil {
		f.Fatal(err)
	}
	for _, c := range host.Chains {
		for _, r := range c.Rules {
			f.Add(encodeRule(f, r))
		}
	}
	f.Add(appendAttr(nil, unix.NFTA_SET_ELEM_LIST_ELEMENTS, appendAttr(nil, unix.NFTA_LIST_ELEM,
		appendAttr(nil, unix.NFTA_SET_ELEM_KEY, appendAttr(nil, unix.NFTA_DATA_VALUE, []byte{10, 0, 0, 1})))))
	f.Add(appendAttr(nil, unix.NFTA_RULE_USERDATA, []byte{0, 4, 'a', '=', 'b', 0}))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRule(parseFields(b))
		if err != nil {
			return
		}
		_ = r.String()
		_ = parseChain(parseFields(b))
		s := parseSet(parseFields(b))
		s.Elements = parseElements(parseFields(b).bytes(unix.NFTA_SET_ELEM_LIST_ELEMENTS))
		s.sort()
		for _, e := range s.Elements {
			_ = e.String()
		}
	})
}

func encodeRule(f *testing.F, r Rule) []byte {
	f.Helper()
	var list []byte
	for _, e := range r.exprs {
		raw, err := expr.Marshal(unix.NFPROTO_INET, e)
		if err != nil {
			f.Fatal(err)
		}
		list = appendAttr(list, unix.NFTA_LIST_ELEM, raw)
	}
	return appendAttr(nil, unix.NFTA_RULE_EXPRESSIONS, list)
}

func appendAttr(b []byte, kind uint16, data []byte) []byte {
	size := unix.SizeofNlAttr + len(data)
	b = append(b, byte(size), byte(size>>8), byte(kind), byte(kind>>8))
	b = append(b, data...)
	for len(b)%unix.NLA_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}
