package nft_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/culvert-mesh/culvert/redirect/nft"
)

func rules(texts ...string) []nft.Rule {
	var out []nft.Rule
	for _, t := range texts {
		out = append(out, nft.Rule{Text: t})
	}
	return out
}

func table(chains ...nft.Chain) *nft.Table { return &nft.Table{Name: "culvert", Chains: chains} }

func TestDiff(t *testing.T) {
	base := nft.Chain{Name: "c", Type: "nat", Hook: "output", Priority: -100}
	with := func(texts ...string) nft.Chain {
		c := base
		c.Rules = rules(texts...)
		return c
	}
	moved := with("a")
	moved.Priority = 0
	commented := with()
	commented.Rules = []nft.Rule{{Text: "a", Comment: "k=v"}}
	tests := []struct {
		name       string
		want, have *nft.Table
		out        []string
	}{
		{"both_absent", nil, nil, nil},
		{"equal", table(with("a", "b")), table(with("a", "b")), nil},
		{"absent", table(with("a")), nil, []string{"table inet culvert is missing"}},
		{"unwanted", nil, table(with("a")), []string{"table inet culvert is there and should not be"}},
		{"chain_missing", table(with("a")), table(), []string{"chain c is missing"}},
		{"chain_foreign", table(), table(with("a")), []string{"chain c does not belong here"}},
		{"rule_missing_first", table(with("a", "b")), table(with("b")), []string{`chain c: rule "a" is missing`}},
		{"rule_missing_last", table(with("a", "b")), table(with("a")), []string{`chain c: rule "b" is missing`}},
		{"rule_foreign", table(with("a", "b")), table(with("a", "x", "b")), []string{`chain c: rule "x" does not belong here`}},
		{"rule_twice", table(with("a")), table(with("a", "a")), []string{`chain c: rule "a" does not belong here`}},
		{"rules_swapped", table(with("a", "b")), table(with("b", "a")),
			[]string{`chain c: rule "a" is missing`, `chain c: rule "a" does not belong here`}},
		{"rule_changed", table(with("a")), table(with("x")), []string{`chain c: rule "a" is missing`, `chain c: rule "x" does not belong here`}},
		{"hook", table(with("a")), table(moved),
			[]string{`chain c is "type nat hook output priority 0; policy accept;" instead of "type nat hook output priority -100; policy accept;"`}},
		{"comment", table(with("a")), table(commented),
			[]string{`chain c: rule "a" is missing`, `chain c: rule "a comment \"k=v\"" does not belong here`}},
		{"flags", table(), &nft.Table{Name: "culvert", Flags: 1}, []string{"table inet culvert has flags 0x1 instead of 0x0"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.out, nft.Diff(tt.want, tt.have)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestOptionsValidate(t *testing.T) {
	for _, name := range []string{"", ".", "..", "a/b", "a b", "a:b", `a"b`, "a*", "0123456789abcdef", "ä"} {
		if err := (nft.Options{VirtualInterfaces: []string{name}}).Validate(); err == nil {
			t.Errorf("interface name %q was accepted", name)
		}
	}
	for _, name := range []string{"eth0", "k6t-eth0", "br.100", "0123456789abcde"} {
		if err := (nft.Options{VirtualInterfaces: []string{name}}).Validate(); err != nil {
			t.Errorf("interface name %q: %v", name, err)
		}
	}
	if _, err := nft.Desired(nft.Options{ExcludeOutbound: []uint16{0}}, nil); err == nil {
		t.Error("Desired accepted port 0")
	}
}

// TestCarveOutsValidate: every fault is named, and what is allowed passes.
func TestCarveOutsValidate(t *testing.T) {
	many := make([]uint16, 257)
	for i := range many {
		many[i] = uint16(i + 1)
	}
	bad := nft.Options{
		ExcludeInbound: []uint16{0, 15008}, IncludeInbound: []uint16{15006}, HostPorts: []uint16{15001, 15053},
		ExcludeOutbound:       many,
		ExcludeOutboundRanges: []netip.Prefix{{}, netip.MustParsePrefix("10.0.0.1/8"), netip.MustParsePrefix("::ffff:10.0.0.0/104")},
		IncludeOutboundRanges: []netip.Prefix{netip.MustParsePrefix("fd00::1/8")},
		ProbeAddresses:        []netip.Addr{netip.MustParseAddr("::1")},
		NodeAddresses:         []netip.Addr{{}, netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("fe80::1%eth0")},
		HostAddresses:         []netip.Addr{netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("ff02::1"), netip.MustParseAddr("::ffff:10.0.0.1")},
	}
	err := bad.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, part := range []string{
		"excluded inbound port 0: not a port", "excluded inbound port 15008: belongs to the agent",
		"included inbound port 15006: belongs to the agent", "host port 15001: belongs", "host port 15053: belongs",
		"excluded outbound ports: 257 of them, at most 256", `excluded outbound range "invalid Prefix"`,
		"is 10.0.0.0/8 meant?", `range "::ffff:10.0.0.0/104"`, "is fd00::/8 meant?",
		`probe address "::1"`, `node address "invalid IP"`, `"127.0.0.1"`, `"fe80::1%eth0"`, `host address "0.0.0.0"`, `"ff02::1"`, `"::ffff:10.0.0.1"`,
	} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in: %v", part, err)
		}
	}
	good := nft.Options{
		ExcludeOutbound: []uint16{15001}, ExcludeInbound: many[:256], IncludeInbound: []uint16{65535},
		ExcludeOutboundRanges: ranges, NodeAddresses: hosts, HostAddresses: hosts, HostPorts: []uint16{15020},
	}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
}

func TestSavedMustFit(t *testing.T) {
	for _, saved := range []map[string]string{
		{"k": strings.Repeat("x", 200)}, {"k": "a\nb"}, {"k": `a"b`},
	} {
		if _, err := nft.Desired(nft.Options{}, saved); err == nil {
			t.Errorf("saved %q was accepted", saved)
		}
		if _, err := nft.SavedOnly(saved); err == nil {
			t.Errorf("saved %q was accepted alone", saved)
		}
	}
	only, err := nft.SavedOnly(map[string]string{"a": "1", "b": ""})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"a": "1", "b": ""}, only.Saved()); diff != "" {
		t.Errorf("saved (-want +got):\n%s", diff)
	}
	var absent *nft.Table
	if absent.Text() != "" || absent.Chain("x") != nil || len(absent.Saved()) != 0 {
		t.Error("an absent table is not empty")
	}
}
