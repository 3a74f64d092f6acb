package nft_test

import (
	"fmt"
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
