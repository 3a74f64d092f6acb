package nft_test

import (
	"flag"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/netnstest"
	"github.com/culvert-mesh/culvert/redirect/nft"
)

var update = flag.Bool("update", false, "rewrite the golden files in testdata")

func TestMain(m *testing.M) { os.Exit(netnstest.Main(m)) }

var variants = []struct {
	name  string
	o     nft.Options
	saved map[string]string
}{
	{name: "bare"},
	{name: "default", o: nft.Options{DNS: true, IPv6: true}},
	{name: "ipv4_dns", o: nft.Options{DNS: true}},
	{name: "no_dns", o: nft.Options{IPv6: true}},
	{name: "ingress", o: nft.Options{DNS: true, IPv6: true, Ingress: true}},
	{name: "probes", o: nft.Options{DNS: true, IPv6: true, Probes: true}},
	{name: "virtual_interfaces", o: nft.Options{DNS: true, IPv6: true, VirtualInterfaces: []string{"k6t-eth0", "tap0"}}},
	{name: "ingress_and_virtual_interfaces", o: nft.Options{IPv6: true, Ingress: true, VirtualInterfaces: []string{"tap0"}}},
	{name: "excluded_ports", o: nft.Options{IPv6: true, ExcludeInbound: []uint16{22, 9100}, ExcludeOutbound: []uint16{5432}}},
	{name: "included_ports", o: nft.Options{IPv6: true, IncludeInbound: []uint16{8080, 9090}, ExcludeInbound: []uint16{22}}},
	{name: "no_outbound", o: nft.Options{DNS: true, IPv6: true, NoOutbound: true}},
	{name: "excluded_ranges", o: nft.Options{IPv6: true, ExcludeOutboundRanges: ranges}},
	{name: "included_ranges", o: nft.Options{DNS: true, IPv6: true, IncludeOutboundRanges: ranges,
		ExcludeOutboundRanges: prefixes("10.3.0.0/16"), ExcludeOutbound: []uint16{5432}}},
	{name: "ipv4_ranges", o: nft.Options{IncludeOutboundRanges: ranges, ExcludeOutboundRanges: ranges}},
	{name: "probe_mark", o: nft.Options{IPv6: true, ProbeMark: true, ProbeAddresses: pods, NodeAddresses: hosts}},
	{name: "probe_mark_one_family", o: nft.Options{IPv6: true, ProbeMark: true, ProbeAddresses: pods[:1], NodeAddresses: hosts}},
	{name: "probe_mark_nowhere", o: nft.Options{IPv6: true, ProbeMark: true, NodeAddresses: hosts}},
	{name: "host_ports", o: nft.Options{IPv6: true, NodeAddresses: hosts[:1], HostPorts: []uint16{9443, 443}, HostAddresses: hosts[1:]}},
	{name: "hosts_ipv4", o: nft.Options{ProbeMark: true, ProbeAddresses: pods, NodeAddresses: hosts, HostPorts: []uint16{9443}, HostAddresses: hosts[2:]}},
	{name: "hosts_unused", o: nft.Options{IPv6: true, NodeAddresses: hosts, HostAddresses: hosts}},
	{name: "draining", o: nft.Options{DNS: true, IPv6: true, Draining: true}},
	{name: "saved", o: nft.Options{DNS: true, IPv6: true}, saved: map[string]string{
		"net.netfilter.nf_conntrack_tcp_timeout_close_wait": "60", "net.ipv4.ip_local_reserved_ports": "",
	}},
}

// ranges end at whole bytes and inside them, and there are those that hold loopback.
var ranges = prefixes("0.0.0.0/0", "10.1.0.0/16", "10.2.16.0/20", "192.0.2.7/32", "126.0.0.0/7", "fd00::/8", "2001:db8:8000::/33", "2001:db8::7/128", "::/0")

var hosts = []netip.Addr{
	netip.MustParseAddr("10.0.0.9"), netip.MustParseAddr("fd00::9"), netip.MustParseAddr("10.0.0.1"),
	netip.MustParseAddr("fd00::1"), netip.MustParseAddr("10.0.0.9"),
}

var pods = []netip.Addr{netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("fd01::2")}

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

func TestGolden(t *testing.T) {
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			want, err := nft.Desired(v.o, v.saved)
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
			for range 2 { // applying twice is applying once
				if err := want.Apply(ns); err != nil {
					t.Fatal(err)
				}
				have := read(t, ns)
				if diff := cmp.Diff(string(text), have.Text()); diff != "" {
					t.Errorf("kernel's rules differ from %s (-golden +kernel):\n%s", golden, diff)
				}
				if d := nft.Diff(want, have); len(d) != 0 {
					t.Errorf("differences right after Apply: %q", d)
				}
				if diff := cmp.Diff(v.saved, have.Saved()); diff != "" && len(v.saved) > 0 {
					t.Errorf("saved values changed (-want +got):\n%s", diff)
				}
			}
			if err := nft.Delete(ns); err != nil {
				t.Fatal(err)
			}
			if got := read(t, ns); got != nil {
				t.Errorf("after Delete there is still:\n%s", got.Text())
			}
			if err := nft.Delete(ns); err != nil {
				t.Errorf("second Delete: %v", err)
			}
		})
	}
}

func read(t *testing.T, ns *netns.NS) *nft.Table {
	t.Helper()
	table, err := nft.Read(ns)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// TestTextMeansTheSameToNft gives the golden text to the nft program and compares
// the rules that it makes of it with ours: so the text says what it seems to say.
func TestTextMeansTheSameToNft(t *testing.T) {
	if _, err := exec.LookPath("nft"); err != nil {
		netnstest.Unable(t, "needs the nft program as an independent reader: "+err.Error())
	}
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			ns := netnstest.New(t)
			text, err := os.ReadFile(filepath.Join("testdata", v.name+".nft"))
			if err != nil {
				t.Fatal(err)
			}
			runNft(t, ns, string(text), "-f", "-")
			if diff := cmp.Diff(string(text), read(t, ns).Text()); diff != "" {
				t.Errorf("nft understands the text differently (-golden +made by nft):\n%s", diff)
			}
		})
	}
}

// TestNftLists looks at the applied rules with the eyes of the nft program.
func TestNftLists(t *testing.T) {
	if _, err := exec.LookPath("nft"); err != nil {
		netnstest.Unable(t, "needs the nft program as an independent reader: "+err.Error())
	}
	ns := netnstest.New(t)
	want, err := nft.Desired(nft.Options{DNS: true, IPv6: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := want.Apply(ns); err != nil {
		t.Fatal(err)
	}
	got := runNft(t, ns, "", "-n", "list", "table", "inet", "culvert")
	for _, line := range []string{
		"type route hook output priority -150; policy accept;",
		"meta mark & 0x00000fff == 0x00000539 ct direction 0 ct mark set ct mark & 0xfffff111 | 0x00000111",
		"ct mark & 0x00000fff == 0x00000111 ct direction 1 meta mark set ct mark",
		"udp dport 53 meta mark & 0x00000fff == 0x00000539 ct zone set 1",
		"redirect to :15001", "redirect to :15006", "redirect to :15053",
		"ip daddr != 127.0.0.0/8 tcp dport != 15008",
	} {
		if !strings.Contains(got, line) {
			t.Errorf("nft does not list %q", line)
		}
	}
	if t.Failed() {
		t.Log(got)
	}
}

func runNft(t *testing.T, ns *netns.NS, stdin string, args ...string) string {
	t.Helper()
	var out []byte
	netnstest.Do(t, ns, func() error {
		// The child inherits the namespace of the thread that starts it.
		cmd := exec.Command("nft", args...)
		cmd.Stdin = strings.NewReader(stdin)
		var err error
		out, err = cmd.CombinedOutput()
		if err != nil {
			t.Logf("nft %v: %s", args, out)
		}
		return err
	})
	return string(out)
}
