package pool

import (
	"net/netip"
	"strings"

	"github.com/culvert-mesh/culvert/identity"
)

// Key says which connections may share a tunnel. It is comparable; make it with NewKey.
type Key struct {
	source   identity.ID
	expected identity.ID
	more     string // further expected identities, in order
	uid      string
	addr     netip.AddrPort
}

// NewKey returns the key of tunnels from source to the workload uid at addr, of which one of the expected identities, in
// this order, has to be proven.
func NewKey(source identity.ID, expected []identity.ID, uid string, addr netip.AddrPort) Key {
	k := Key{source: source, uid: uid, addr: addr}
	if len(expected) > 0 {
		k.expected = expected[0]
	}
	if len(expected) > 1 {
		var b strings.Builder
		for _, id := range expected[1:] {
			b.WriteString(id.String())
			b.WriteByte(' ')
		}
		k.more = b.String()
	}
	return k
}

// Source returns the identity that the tunnels present.
func (k Key) Source() identity.ID { return k.source }

// Expected returns the first identity that is expected of the peer.
func (k Key) Expected() identity.ID { return k.expected }

// UID returns the destination workload's UID.
func (k Key) UID() string { return k.uid }

// Addr returns the address that is dialled.
func (k Key) Addr() netip.AddrPort { return k.addr }
