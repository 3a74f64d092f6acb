package netnstest_test

import (
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/redirect/netnstest"
)

func TestMain(m *testing.M) { os.Exit(netnstest.Main(m)) }

func TestVethAndEcho(t *testing.T) {
	a, b := netnstest.New(t), netnstest.New(t)
	netnstest.Veth(t,
		netnstest.End{NS: a, Name: "a0", Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("2001:db8::1/64")}},
		netnstest.End{NS: b, Name: "b0", Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.2/24"), netip.MustParsePrefix("2001:db8::2/64")}})
	for _, addr := range []string{"192.0.2.2:7", "[2001:db8::2]:7"} {
		netnstest.Echo(t, netnstest.Listen(t, b, addr, netnstest.Options{}))
		c, err := netnstest.Dial(t, a, "tcp", addr, netnstest.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, "hello"); err != nil {
			t.Fatal(err)
		}
		_ = c.(*net.TCPConn).CloseWrite()
		if got, err := io.ReadAll(c); string(got) != "hello" || err != nil {
			t.Errorf("%s echoes %q, %v", addr, got, err)
		}
	}
}

func TestSysctlIsTheNamespaces(t *testing.T) {
	ns, other := netnstest.New(t), netnstest.New(t)
	const name = "net/ipv4/ip_default_ttl"
	netnstest.Sysctl(t, ns, name, "33")
	if got := netnstest.ReadSysctl(t, ns, name); got != "33\n" {
		t.Errorf("read back %q", got)
	}
	if got := netnstest.ReadSysctl(t, other, name); got == "33\n" {
		t.Error("another namespace has the value too")
	}
}

// tbSpy records how a helper gave up.
type tbSpy struct {
	testing.TB
	skipped, failed string
}

func (s *tbSpy) Helper()                           {}
func (s *tbSpy) Skip(args ...any)                  { s.skipped, _ = args[0].(string) }
func (s *tbSpy) Fatalf(format string, args ...any) { s.failed = format }

func TestUnable(t *testing.T) {
	for _, tt := range []struct{ ci, skipped, failed string }{
		{"", "no kernel", ""}, {"true", "no kernel", "cannot run in CI"},
	} {
		t.Setenv("CI", tt.ci)
		spy := &tbSpy{TB: t}
		netnstest.Unable(spy, "no kernel")
		if !strings.HasPrefix(spy.failed, tt.failed) || (tt.failed == "") != (spy.failed == "") || spy.skipped != tt.skipped {
			t.Errorf("CI=%q: skipped %q, failed %q", tt.ci, spy.skipped, spy.failed)
		}
	}
}
