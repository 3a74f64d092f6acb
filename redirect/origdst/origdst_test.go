package origdst_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/netnstest"
	"github.com/culvert-mesh/culvert/redirect/nft"
	"github.com/culvert-mesh/culvert/redirect/origdst"
)

func TestMain(m *testing.M) { os.Exit(netnstest.Main(m)) }

// captured returns a namespace with an address of each family and, when wanted,
// capture rules.
func captured(t testing.TB, rules bool) *netns.NS {
	t.Helper()
	ns, peer := netnstest.New(t), netnstest.New(t)
	netnstest.Veth(t,
		netnstest.End{NS: ns, Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/24"), netip.MustParsePrefix("fd00::2/64")}},
		netnstest.End{NS: peer, Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24"), netip.MustParsePrefix("fd00::1/64")}})
	if rules {
		table, err := nft.Desired(nft.Options{DNS: true, IPv6: true}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := table.Apply(ns); err != nil {
			t.Fatal(err)
		}
	}
	return ns
}

// accepted connects to addr and returns what origdst.TCP says of the connection that
// arrives at the listener.
func accepted(t *testing.T, ns *netns.NS, listen, addr string) (netip.AddrPort, error) {
	t.Helper()
	l := netnstest.Listen(t, ns, listen, netnstest.Options{})
	type result struct {
		dst netip.AddrPort
		err error
	}
	got := make(chan result, 1)
	netnstest.Serve(t, l, func(c net.Conn) {
		raw, err := c.(*net.TCPConn).SyscallConn()
		if err != nil {
			got <- result{err: err}
			return
		}
		var r result
		err = raw.Control(func(fd uintptr) { r.dst, r.err = origdst.TCP(int(fd)) })
		r.err = errors.Join(r.err, err)
		got <- r
	})
	if _, err := netnstest.Dial(t, ns, "tcp", addr, netnstest.Options{}); err != nil {
		t.Fatal(err)
	}
	r := <-got
	return r.dst, r.err
}

func TestTCP(t *testing.T) {
	for _, tt := range []struct {
		name         string
		rules        bool
		listen, addr string
		want         string
	}{
		{"redirected_v4", true, "[::]:15001", "10.0.0.1:81", "10.0.0.1:81"},
		{"redirected_v4_only_listener", true, "127.0.0.1:15001", "10.0.0.1:81", "10.0.0.1:81"},
		{"redirected_v6", true, "[::]:15001", "[fd00::1]:81", "[fd00::1]:81"},
		{"direct_tracked", true, "[::]:8080", "10.0.0.2:8080", "10.0.0.2:8080"},
		{"direct_tracked_v6", true, "[::]:8080", "[::1]:8080", "[::1]:8080"},
		{"nothing_tracks_v4", false, "[::]:8080", "10.0.0.2:8080", "10.0.0.2:8080"},
		{"nothing_tracks_v6", false, "[::]:8080", "[fd00::2]:8080", "[fd00::2]:8080"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := accepted(t, captured(t, tt.rules), tt.listen, tt.addr)
			if err != nil || got.String() != tt.want {
				t.Errorf("TCP = %v, %v, want %s", got, err, tt.want)
			}
		})
	}
}

func TestTCPOfOtherDescriptors(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	for _, fd := range []int{-1, pair[0]} {
		if got, err := origdst.TCP(fd); err == nil {
			t.Errorf("TCP(%d) = %v, want an error", fd, got)
		}
	}
}

// ask sends a query that is redirected, and returns the addresses that the agent sees.
func ask(t testing.TB, ns *netns.NS, listen, server string) (client, local netip.AddrPort) {
	t.Helper()
	agent := netnstest.ListenPacket(t, ns, listen, netnstest.Options{Mark: nft.AgentMark})
	c, err := netnstest.Dial(t, ns, "udp", server, netnstest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("?")); err != nil {
		t.Fatal(err)
	}
	_, client, err = agent.ReadFromUDPAddrPort(make([]byte, 16))
	if err != nil {
		t.Fatal(err)
	}
	return client, agent.LocalAddr().(*net.UDPAddr).AddrPort()
}

func TestUDP(t *testing.T) {
	for _, tt := range []struct{ name, listen, server string }{
		{"v4", "127.0.0.1:15053", "10.0.0.1:53"}, {"v6", "[::1]:15053", "[fd00::1]:53"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ns := captured(t, true)
			client, local := ask(t, ns, tt.listen, tt.server)
			ct, err := origdst.Open(ns)
			if err != nil {
				t.Fatal(err)
			}
			for range 3 { // the socket may be used again
				if got, err := ct.UDP(client, local); err != nil || got.String() != tt.server {
					t.Errorf("UDP = %v, %v, want %s", got, err, tt.server)
				}
				other := netip.AddrPortFrom(client.Addr(), client.Port()^1)
				if _, err := ct.UDP(other, local); !errors.Is(err, origdst.ErrNotTracked) {
					t.Errorf("UDP of another client = %v, want ErrNotTracked", err)
				}
			}
			mapped := netip.AddrPortFrom(netip.AddrFrom16(client.Addr().As16()), client.Port())
			if got, err := ct.UDP(mapped, local); err != nil || got.String() != tt.server {
				t.Errorf("UDP of a mapped address = %v, %v", got, err)
			}
			if err := ct.Close(); err != nil {
				t.Error(err)
			}
			if err := ct.Close(); err != nil {
				t.Errorf("second Close: %v", err)
			}
			if _, err := ct.UDP(client, local); !errors.Is(err, os.ErrClosed) {
				t.Errorf("UDP after Close = %v, want ErrClosed", err)
			}
		})
	}
}

func BenchmarkUDP(b *testing.B) {
	ns := captured(b, true)
	client, local := ask(b, ns, "127.0.0.1:15053", "10.0.0.1:53")
	ct, err := origdst.Open(ns)
	if err != nil {
		b.Fatal(err)
	}
	defer ct.Close()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ct.UDP(client, local); err != nil {
			b.Fatal(err)
		}
	}
}
