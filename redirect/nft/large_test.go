package nft_test

import (
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/redirect/netnstest"
	"github.com/culvert-mesh/culvert/redirect/nft"
)

// TestLargeTable: a process of the pod that may change its rules has filled our table. It is read in part, found to differ in
// few words, and replaced.
func TestLargeTable(t *testing.T) {
	ns := netnstest.New(t)
	want, err := nft.Desired(nft.Options{DNS: true, IPv6: true}, map[string]string{"key": "value"})
	if err != nil {
		t.Fatal(err)
	}
	if err := want.Apply(ns); err != nil {
		t.Fatal(err)
	}
	const many = 6000
	line := "add rule inet culvert nat_output" + strings.Repeat(" ct mark 1", 20) + " accept\n"
	runNft(t, ns, strings.Repeat(line, many), "-f", "-")
	have := read(t, ns)
	found := nft.Diff(want, have)
	if rules := len(have.Chain("nat_output").Rules); rules == 0 || rules >= many {
		t.Errorf("%d of %d rules were read", rules, many)
	}
	if text := strings.Join(found, "\n"); len(found) == 0 || len(text) > 20<<10 || !strings.Contains(found[0], "has more than the") {
		t.Errorf("%d findings, %.500s", len(found), text)
	}
	if err := want.Apply(ns); err != nil {
		t.Fatal(err)
	}
	if found := nft.Diff(want, read(t, ns)); len(found) > 0 {
		t.Errorf("after it was replaced: %q", found)
	}
}

// TestLargestOptions: what options may ask for at most can be applied, and read as a whole.
func TestLargestOptions(t *testing.T) {
	if os.Geteuid() != 0 || !initialUserNamespace() {
		t.Skip("only root outside of user namespaces may make netlink sockets hold that much")
	}
	var ports []uint16
	var include, exclude []netip.Prefix
	for i := range 256 {
		ports = append(ports, uint16(i+1))
		include = append(include, netip.MustParsePrefix(fmt.Sprintf("2001:db8:%x::/48", i)))
		exclude = append(exclude, netip.MustParsePrefix(fmt.Sprintf("2001:db8:%x:1::/64", i)))
	}
	addrs := make([]netip.Addr, nft.MaxAddresses)
	addr := netip.MustParseAddr("fd00::1")
	for i := range addrs {
		addrs[i], addr = addr, addr.Next()
	}
	o := nft.Options{
		DNS: true, IPv6: true, Probes: true, ProbeMark: true, ExcludeInbound: ports, ExcludeOutbound: ports, HostPorts: ports,
		IncludeOutboundRanges: include, ExcludeOutboundRanges: exclude, ProbeAddresses: addrs, NodeAddresses: addrs, HostAddresses: addrs,
	}
	want, err := nft.Desired(o, nil)
	if err != nil {
		t.Fatal(err)
	}
	ns := netnstest.New(t)
	if err := want.Apply(ns); err != nil {
		t.Fatal(err)
	}
	if found := nft.Diff(want, read(t, ns)); len(found) > 0 {
		t.Errorf("read something else than was applied: %q", found)
	}
	o.HostAddresses = append(addrs, addr)
	if err := o.Validate(); err == nil {
		t.Errorf("%d addresses are too many and were taken", len(o.HostAddresses))
	}
}

// TestDiffOfManyRules: neither a long chain nor a long rule makes long work of it.
func TestDiffOfManyRules(t *testing.T) {
	long := nft.Chain{Name: "c", Rules: rules(make([]string, 100000)...)}
	want := table(nft.Chain{Name: "c", Rules: rules(strings.Split(strings.Repeat("a\n", 500), "\n")...)})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	found := nft.Diff(want, table(long))
	runtime.ReadMemStats(&after)
	if len(found) != 1 || found[0] != "chain c has 100000 rules instead of 501, or others" {
		t.Errorf("found %.3q", found)
	}
	if took := after.TotalAlloc - before.TotalAlloc; took > 64<<20 {
		t.Errorf("allocated %d MiB to compare", took>>20)
	}
	var chains []nft.Chain
	for i := range 1000 {
		chains = append(chains, nft.Chain{Name: fmt.Sprint(strings.Repeat("n", 1000), i)})
	}
	found = nft.Diff(table(), table(chains...))
	if text := strings.Join(found, "\n"); len(found) != 33 || len(text) > 20<<10 || found[32] != "and 968 differences more" {
		t.Errorf("%d findings: %.300s", len(found), text)
	}
}

func initialUserNamespace() bool {
	ids, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Join(strings.Fields(string(ids)), " ") == "0 0 4294967295"
}
