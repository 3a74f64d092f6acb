package nft_test

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/culvert-mesh/culvert/redirect/netnstest"
	"github.com/culvert-mesh/culvert/redirect/nft"
)

var enrolled = map[netip.Addr]string{
	netip.MustParseAddr("10.0.0.7"): "6f9b8e1c-0000-4000-8000-000000000007",
	netip.MustParseAddr("10.0.0.3"): "6f9b8e1c-0000-4000-8000-000000000003",
	netip.MustParseAddr("fd00::7"):  "6f9b8e1c-0000-4000-8000-000000000007",
}

var hostVariants = []struct {
	name   string
	o      nft.HostOptions
	bridge bool
	nft    bool // the text holds nothing that the nft program looks up on the machine
}{
	{name: "host_nobody", o: nft.HostOptions{Pods: enrolled}, nft: true},
	{name: "host_empty", nft: true},
	{name: "host_uid", o: nft.HostOptions{Pods: enrolled, Kubelet: &nft.SocketOwner{UID: 990}}, nft: true},
	{name: "host_cgroup", o: nft.HostOptions{Pods: enrolled, Kubelet: &nft.SocketOwner{CgroupID: 4711, Levels: []uint32{2, 3}}}},
	{name: "host_bridge", o: nft.HostOptions{Pods: enrolled}, bridge: true, nft: true},
}

func TestHostGolden(t *testing.T) {
	for _, v := range hostVariants {
		t.Run(v.name, func(t *testing.T) {
			make, family := nft.DesiredHost, nft.FamilyInet
			if v.bridge {
				make, family = nft.DesiredBridge, nft.FamilyBridge
			}
			want, err := make(v.o)
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", v.name+".nft")
			if *update {
				if err := os.WriteFile(golden, []byte(want.Text()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			text, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(text), want.Text()); diff != "" {
				t.Errorf("desired rules differ from %s (-golden +desired; -update rewrites):\n%s", golden, diff)
			}
			ns := netnstest.New(t)
			for range 2 {
				if err := want.Apply(ns); err != nil {
					t.Fatal(err)
				}
				have, err := nft.ReadTable(ns, family, nft.HostTableName)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(string(text), have.Text()); diff != "" {
					t.Errorf("kernel's rules differ from %s (-golden +kernel):\n%s", golden, diff)
				}
				if d := nft.Diff(want, have); len(d) != 0 {
					t.Errorf("differences right after Apply: %q", d)
				}
				if len(v.o.Pods) > 0 {
					if diff := cmp.Diff(v.o.Pods, have.Pods(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
						t.Errorf("pods (-given +read):\n%s", diff)
					}
				}
			}
			if v.nft {
				hostMeansTheSame(t, string(text), family)
			}
			if err := nft.DeleteTable(ns, family, nft.HostTableName); err != nil {
				t.Fatal(err)
			}
			if have, err := nft.ReadTable(ns, family, nft.HostTableName); err != nil || have != nil {
				t.Errorf("after delete: %v, %v", have, err)
			}
		})
	}
}

// hostMeansTheSame gives the text to the nft program, an independent reader.
func hostMeansTheSame(t *testing.T, text string, family nft.Family) {
	t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		netnstest.Unable(t, "needs the nft program as an independent reader: "+err.Error())
	}
	ns := netnstest.New(t)
	runNft(t, ns, text, "-f", "-")
	have, err := nft.ReadTable(ns, family, nft.HostTableName)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(text, have.Text()); diff != "" {
		t.Errorf("nft understands the text differently (-golden +made by nft):\n%s", diff)
	}
}

func TestHostRefuses(t *testing.T) {
	addr := netip.MustParseAddr("10.0.0.7")
	for name, o := range map[string]nft.HostOptions{
		"level":   {Kubelet: &nft.SocketOwner{CgroupID: 1}},
		"address": {Pods: map[netip.Addr]string{{}: "x"}},
		"zone":    {Pods: map[netip.Addr]string{netip.MustParseAddr("fe80::1%eth0"): "x"}},
		"mapped":  {Pods: map[netip.Addr]string{netip.MustParseAddr("::ffff:10.0.0.7"): "x"}},
		"quote":   {Pods: map[netip.Addr]string{addr: `a"b`}},
		"long":    {Pods: map[netip.Addr]string{addr: strings.Repeat("x", 121)}},
	} {
		_, hostErr := nft.DesiredHost(o)
		_, bridgeErr := nft.DesiredBridge(o)
		if hostErr == nil || bridgeErr == nil {
			t.Errorf("%s was accepted: %v, %v", name, hostErr, bridgeErr)
		}
	}
}

// TestManyPods: sets do not end where a netlink message does.
func TestManyPods(t *testing.T) {
	ns := netnstest.New(t)
	o := nft.HostOptions{Pods: map[netip.Addr]string{}}
	addr := netip.MustParseAddr("10.64.0.1")
	for range 2000 {
		o.Pods[addr] = "6f9b8e1c-0000-4000-8000-000000000007"
		addr = addr.Next()
	}
	want, err := nft.DesiredHost(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := want.Apply(ns); err != nil {
		t.Fatal(err)
	}
	have, err := nft.ReadTable(ns, nft.FamilyInet, nft.HostTableName)
	if err != nil {
		t.Fatal(err)
	}
	if d := nft.Diff(want, have); len(d) > 0 {
		t.Errorf("%d differences, the first %q", len(d), d[0])
	}
}

func TestTryFeature(t *testing.T) {
	ns := netnstest.New(t)
	for _, f := range []nft.HostFeature{nft.FeatureCgroup, nft.FeatureBridge} {
		if err := nft.TryFeature(ns, f); err != nil {
			t.Error(err)
		}
	}
	for _, family := range []nft.Family{nft.FamilyInet, nft.FamilyBridge} {
		if have, err := nft.ReadTable(ns, family, nft.HostTableName+"-probe"); err != nil || have != nil {
			t.Errorf("a try has left %v, %v", have, err)
		}
	}
	if err := ns.Close(); err != nil {
		t.Fatal(err)
	}
	if err := nft.TryFeature(ns, nft.FeatureBridge); err == nil || !strings.Contains(err.Error(), "CONFIG_NF_TABLES_BRIDGE") {
		t.Errorf("in a closed namespace: %v", err)
	}
}

func TestDiffSets(t *testing.T) {
	ns := netnstest.New(t)
	want, err := nft.DesiredHost(nft.HostOptions{Pods: enrolled})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		command string
		want    string
	}{
		{"delete element inet culvert-host pods4 { 10.0.0.3 }", `set pods4: element 10.0.0.3 comment "6f9b8e1c-0000-4000-8000-000000000003" is missing`},
		{"add element inet culvert-host pods4 { 10.9.9.9 }", "set pods4: element 10.9.9.9 does not belong here"},
		{"add set inet culvert-host more { type inet_service; flags interval; elements = { 80-90 } }", "set more does not belong here"},
		{"insert rule inet culvert-host clean_forward ip dscp != 0x2b accept", `chain clean_forward: rule "meta nfproto ipv4 ip dscp != 0x2b accept" does not belong here`},
		{"insert rule inet culvert-host clean_forward ip dscp set 0x2c", `rule "meta nfproto ipv4 ip dscp set 0x2c" does not belong here`},
		{"insert rule inet culvert-host clean_forward @nh,8,8 0x2b accept", `rule "@nh,8,8 0x2b accept" does not belong here`},
		{"insert rule inet culvert-host clean_forward ip daddr != @pods4 accept", `rule "meta nfproto ipv4 unknown(lookup`},
		{"insert rule inet culvert-host clean_forward ip ttl set 3", `rule "meta nfproto ipv4 unknown(payload`},
		{"insert rule inet culvert-host clean_forward ip daddr & 255.0.255.0 == 10.0.1.0 accept", "does not belong here"},
	} {
		if err := want.Apply(ns); err != nil {
			t.Fatal(err)
		}
		runNft(t, ns, tt.command+"\n", "-f", "-")
		have, err := nft.ReadTable(ns, nft.FamilyInet, nft.HostTableName)
		if err != nil {
			t.Fatal(err)
		}
		if d := nft.Diff(want, have); len(d) != 1 || !strings.Contains(d[0], tt.want) {
			t.Errorf("after %q: %q, want %q", tt.command, d, tt.want)
		}
	}
}
