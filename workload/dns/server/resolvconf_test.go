package server_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/culvert-mesh/culvert/workload/dns/server"
)

func TestParseResolvConf(t *testing.T) {
	servers := func(ss ...string) []netip.AddrPort {
		var out []netip.AddrPort
		for _, s := range ss {
			out = append(out, netip.MustParseAddrPort(s))
		}
		return out
	}
	tests := []struct {
		name string
		text string
		want server.ResolvConf
	}{
		{"empty", "", server.ResolvConf{}},
		{"kubernetes", "search ns1.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n", server.ResolvConf{
			Nameservers: servers("10.96.0.10:53"),
			Search:      []string{"ns1.svc.cluster.local", "svc.cluster.local", "cluster.local"},
		}},
		{"comments-and-faults", "; a\n# b\nnameserver\nnameserver x\nnameserver ::1 # c\n\tnameserver fe80::1%eth0\n", server.ResolvConf{
			Nameservers: servers("[::1]:53", "[fe80::1%eth0]:53"),
		}},
		{"at-most-three", "nameserver 1.1.1.1\nnameserver 2.2.2.2\nnameserver 3.3.3.3\nnameserver 4.4.4.4\n", server.ResolvConf{
			Nameservers: servers("1.1.1.1:53", "2.2.2.2:53", "3.3.3.3:53"),
		}},
		{"last-search-wins", "domain a\nsearch b c", server.ResolvConf{Search: []string{"b", "c"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := server.ParseResolvConf(strings.NewReader(tt.text))
			if err != nil {
				t.Fatal(err)
			}
			equal := cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })
			if d := cmp.Diff(tt.want, got, equal); d != "" {
				t.Errorf("ParseResolvConf (-want +got):\n%s", d)
			}
		})
	}
	if _, err := server.ParseResolvConf(strings.NewReader(strings.Repeat("x", 1<<20))); err == nil {
		t.Error("an endless line is accepted")
	}
}

func FuzzParseResolvConf(f *testing.F) {
	f.Add("nameserver 1.1.1.1\nsearch a b\n")
	f.Fuzz(func(t *testing.T, text string) {
		c, _ := server.ParseResolvConf(strings.NewReader(text))
		for _, s := range c.Nameservers {
			if !s.IsValid() {
				t.Errorf("nameserver %v", s)
			}
		}
	})
}
