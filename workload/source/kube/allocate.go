package kube

import (
	"encoding/binary"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"
)

// A host of a ServiceEntry that has no addresses of its own gets one of each
// family, from ranges that nobody routes (Istio's). They are kept in the
// entry's status, which is all that remembers them: an address that stands
// there stays, whoever wrote it, and is free again when the entry goes.
//
// Every replica works out what is to be written, by a hash of the host, so that
// they nearly always agree; the one that leads writes. Two entries that have
// got one address all the same, as by a copied status, are told apart by age:
// the younger one is not published with it and gets another.

// pool is a range of addresses to give out.
type pool struct {
	base netip.Addr
	size uint32 // of what is given out; base itself is not
}

// pools returns the two ranges: 240.240.0.0/16 and 2001:2::/48, of which more
// than anybody needs is used.
func pools() [2]pool {
	return [2]pool{
		{netip.AddrFrom4([4]byte{240, 240}), 1<<16 - 2},
		{netip.AddrFrom16([16]byte{0x20, 0x01, 0x00, 0x02}), 1 << 31},
	}
}

// at returns the i-th address.
func (p pool) at(i uint32) netip.Addr {
	if p.base.Is4() {
		b := p.base.As4()
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+1+i)
		return netip.AddrFrom4(b)
	}
	b := p.base.As16()
	binary.BigEndian.PutUint32(b[12:], 1+i)
	return netip.AddrFrom16(b)
}

// HostAddress is an address that was allocated to a host of a ServiceEntry.
type HostAddress struct {
	Host string
	Addr netip.Addr
}

func compareHostAddresses(a, b HostAddress) int {
	if c := strings.Compare(a.Host, b.Host); c != 0 {
		return c
	}
	return a.Addr.Compare(b.Addr)
}

// wantsAddresses reports whether addresses are allocated to hosts of the entry.
func (o *serviceEntryObject) wantsAddresses() bool {
	return len(o.vips)+len(o.cidrs) == 0 && o.resolution != resolutionNone && !o.hidden &&
		!strings.EqualFold(o.labels.value(labelAutoAllocate), "false")
}

// takesAddress reports whether the host can be reached by one address: a name
// with a wildcard can only where each name below it is resolved by itself.
func (o *serviceEntryObject) takesAddress(host string) bool {
	return !wildcard(host) || o.resolution == resolutionDynamicDNS
}

// allocation is what was found for an entry.
type allocation struct {
	want   []HostAddress // that its status should have, in order
	enough bool          // there were addresses for all of its hosts
}

// allocate finds addresses for the entries that are dirty: first those that
// they have and may keep, so that nobody else gets them, then new ones. Older
// entries choose first.
func (st *state) allocate() {
	clear(st.allocations)
	var entries []*serviceEntryObject
	for r := range st.dirty {
		if r.kind != kindServiceEntry {
			continue
		}
		st.release(r.key)
		if o := st.serviceEntries.get(r.key); o != nil && o.wantsAddresses() {
			entries = append(entries, o)
		}
	}
	slices.SortFunc(entries, func(a, b *serviceEntryObject) int {
		if older(&a.header, &b.header) {
			return -1
		}
		return 1
	})
	for _, o := range entries {
		st.allocations[o.key] = allocation{want: st.keep(o)}
	}
	for _, o := range entries {
		a := st.allocations[o.key]
		a.enough = st.complete(o, &a.want)
		slices.SortFunc(a.want, compareHostAddresses)
		st.allocations[o.key] = a
	}
}

// keep reserves the addresses that the entry has and nobody else has the better
// claim to.
func (st *state) keep(o *serviceEntryObject) []HostAddress {
	var kept []HostAddress
	for _, host := range o.hosts {
		for _, a := range o.automatic[host] {
			if !st.loses(o, a) && st.reserve(o.key, a) {
				kept = append(kept, HostAddress{host, a})
			}
		}
	}
	return kept
}

// complete adds an address of each family where a host has none. It reports
// false when there are not enough.
func (st *state) complete(o *serviceEntryObject, want *[]HostAddress) bool {
	enough := true
	for _, host := range o.hosts {
		if !o.takesAddress(host) {
			continue
		}
		for _, p := range pools() {
			has := slices.ContainsFunc(*want, func(h HostAddress) bool { return h.Host == host && h.Addr.Is4() == p.base.Is4() })
			if has {
				continue
			}
			a, ok := st.free(o, host, p)
			if enough = enough && ok; ok {
				*want = append(*want, HostAddress{host, a})
			}
		}
	}
	return enough
}

// free reserves an address of the pool that nobody has.
func (st *state) free(o *serviceEntryObject, host string, p pool) (netip.Addr, bool) {
	h := fnv.New64a()
	_, _ = h.Write([]byte(o.key.String() + "/" + host)) // never fails
	start := uint32(h.Sum64() % uint64(p.size))
	for i := range p.size {
		a := p.at(uint32((uint64(start) + uint64(i)) % uint64(p.size)))
		if len(st.entriesOfAddress[a])+len(st.servicesOfVIP[a])+len(st.podsOfAddress[a]) == 0 && st.reserve(o.key, a) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// reserve keeps others from getting the address. It fails for one that an entry
// has reserved already.
func (st *state) reserve(k key, a netip.Addr) bool {
	if _, taken := st.reserved[a]; taken {
		return false
	}
	st.reserved[a] = k
	st.reservedBy[k] = append(st.reservedBy[k], a)
	return true
}

func (st *state) release(k key) {
	for _, a := range st.reservedBy[k] {
		delete(st.reserved, a)
	}
	delete(st.reservedBy, k)
}

// loses reports whether others have the better claim to an address that was
// allocated to the entry: Services and pods, entries that name it, older ones.
func (st *state) loses(o *serviceEntryObject, a netip.Addr) bool {
	if len(st.servicesOfVIP[a])+len(st.podsOfAddress[a]) > 0 {
		return true
	}
	for r := range st.entriesOfAddress[a] {
		other := st.serviceEntries.get(r.key)
		if other == nil || r.key == o.key {
			continue
		}
		if slices.Contains(other.vips, a) || older(&other.header, &o.header) {
			return true
		}
	}
	return false
}

// markRivals marks the other entries that claim one of the addresses, or are
// about to.
func (st *state) markRivals(r ref, addrs []netip.Addr) {
	for _, a := range addrs {
		for other := range st.entriesOfAddress[a] {
			if o := st.serviceEntries.get(other.key); o != nil && other != r {
				st.markEntry(o)
			}
		}
		if k, ok := st.reserved[a]; ok && k != r.key {
			st.markKey(kindServiceEntry, k)
		}
	}
}
