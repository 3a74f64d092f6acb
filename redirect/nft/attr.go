package nft

import (
	"encoding/binary"
	"errors"
	"iter"

	"golang.org/x/sys/unix"
)

var errShort = errors.New("netlink attribute is cut short")

// attrs yields the netlink attributes of b: type without flag bits, and payload,
// which points into b. It stops at the first one that does not fit.
func attrs(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofNlAttr {
			size := int(binary.NativeEndian.Uint16(b))
			kind := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if size < unix.SizeofNlAttr || size > len(b) {
				return
			}
			if !yield(kind, b[unix.SizeofNlAttr:size]) {
				return
			}
			b = b[min(len(b), (size+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1)):]
		}
	}
}

// fields are the attributes of one level. There are few, so searching them is
// cheaper than a map.
type fields []field

type field struct {
	kind uint16
	data []byte
}

func parseFields(b []byte) fields {
	var f fields
	for kind, data := range attrs(b) {
		f = append(f, field{kind, data})
	}
	return f
}

// get returns the payload of an attribute and whether it is there; of repeated ones
// the first.
func (f fields) get(kind uint16) ([]byte, bool) {
	for _, a := range f {
		if a.kind == kind {
			return a.data, true
		}
	}
	return nil, false
}

func (f fields) bytes(kind uint16) []byte {
	b, _ := f.get(kind)
	return b
}

func (f fields) has(kind uint16) bool {
	_, ok := f.get(kind)
	return ok
}

// uint32 reads a number in network byte order, as nf_tables has all of them.
func (f fields) uint32(kind uint16) uint32 {
	if b := f.bytes(kind); len(b) == 4 {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (f fields) text(kind uint16) string { return cString(f.bytes(kind)) }

func cString(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

// element is one expression of a rule as it stands in a netlink message.
type element struct {
	name string
	data fields
}

// parseElement reads the content of an NFTA_LIST_ELEM.
func parseElement(b []byte) (element, error) {
	f := parseFields(b)
	name := f.text(unix.NFTA_EXPR_NAME)
	if name == "" {
		return element{}, errShort
	}
	return element{name: name, data: parseFields(f.bytes(unix.NFTA_EXPR_DATA))}, nil
}

// value unpacks an attribute that holds NFTA_DATA_VALUE.
func (e element) value(kind uint16) []byte {
	return parseFields(e.data.bytes(kind)).bytes(unix.NFTA_DATA_VALUE)
}
