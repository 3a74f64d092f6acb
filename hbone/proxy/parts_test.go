package proxy

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/culvert-mesh/culvert/hbone/h2"
	"github.com/culvert-mesh/culvert/hbone/tunnel"
	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/mtls"
	"github.com/culvert-mesh/culvert/workload"
)

func TestForwarded(t *testing.T) {
	svc := &workload.Service{Hostname: "svc.example"}
	for _, tc := range []struct {
		client  string
		service *workload.Service
		want    string
	}{
		{"127.0.0.1:80", nil, `for="127.0.0.1:80"`},
		{"127.0.0.1:80", svc, `for="127.0.0.1:80";host=svc.example`},
		{"[::1]:80", nil, `for="[::1]:80"`},
		{"[::1]:80", svc, `for="[::1]:80";host=svc.example`},
	} {
		if got := forwarded(netip.MustParseAddrPort(tc.client), tc.service); got != tc.want {
			t.Errorf("forwarded is %s, want %s", got, tc.want)
		}
	}
}

func TestForwardedHost(t *testing.T) {
	for value, want := range map[string]string{
		"":                              "",
		`for="1.2.3.4:5"`:               "",
		`host=a`:                        "a",
		`host="a"`:                      "a",
		`for=x;host=a;host=b`:           "a",
		`for=x;Host=a`:                  "",
		`host=`:                         "",
		"host=\xff":                     "",
		`for="[::1]:2";host=svc.ns.svc`: "svc.ns.svc",
	} {
		if got := forwardedHost(value); got != want {
			t.Errorf("host of %q is %q, want %q", value, got, want)
		}
	}
}

func FuzzForwardedHost(f *testing.F) {
	f.Add(`for="1.2.3.4:5";host="a"`)
	f.Fuzz(func(t *testing.T, value string) {
		if host := forwardedHost(value); len(host) > len(value) {
			t.Errorf("host %q of %q", host, value)
		}
	})
}

func TestProxyHeader(t *testing.T) {
	id := identity.MustParse("spiffe://td/ns/n/sa/s")
	tlv := "\xd0\x00\x15" + id.String()
	for _, tc := range []struct {
		name, client, target string
		id                   identity.ID
		want                 string
	}{
		{"v4", "1.2.3.4:5", "6.7.8.9:10", identity.ID{}, "\x11\x00\x0c\x01\x02\x03\x04\x06\x07\x08\x09\x00\x05\x00\x0a"},
		{"v6", "[::1]:5", "[::2]:10", identity.ID{}, "\x21\x00\x24\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01" +
			"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x05\x00\x0a"},
		{"mixed", "1.2.3.4:5", "[::2]:10", identity.ID{}, "\x00\x00\x00"},
		{"identity", "1.2.3.4:5", "6.7.8.9:10", id, "\x11\x00\x24\x01\x02\x03\x04\x06\x07\x08\x09\x00\x05\x00\x0a" + tlv},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := string(proxyHeader(netip.MustParseAddrPort(tc.client), netip.MustParseAddrPort(tc.target), tc.id))
			if want := "\r\n\r\n\x00\r\nQUIT\n\x21" + tc.want; got != want {
				t.Errorf("header is\n%q, want\n%q", got, want)
			}
		})
	}
}

func TestSuspensions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &suspensions{base: 5 * time.Second}
		addr := netip.MustParseAddrPort("1.2.3.4:15008")
		is := func(want bool, when string) {
			t.Helper()
			if got := s.has("uid", addr); got != want {
				t.Errorf("%s: suspended is %t", when, got)
			}
		}
		is(false, "unknown")
		s.trying("uid", addr)
		s.works("uid", addr)
		for i, d := range []time.Duration{5, 10, 20, 40, 60, 60} {
			s.failed("uid", addr)
			time.Sleep(d*time.Second - 1)
			is(true, fmt.Sprintf("failure %d, before its time", i+1))
			time.Sleep(2 * time.Nanosecond)
			is(false, fmt.Sprintf("failure %d, behind its time", i+1))
			s.trying("uid", addr)
			is(true, "while it is probed")
		}
		if s.has("other", addr) || s.has("uid", netip.MustParseAddrPort("1.2.3.4:1")) {
			t.Error("something else is suspended too")
		}
		time.Sleep(time.Minute)
		is(false, "a probe that told nothing")
		s.works("uid", addr)
		s.failed("uid", addr)
		time.Sleep(5*time.Second + 1)
		is(false, "first failure again")
	})
}

func TestSuspensionsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &suspensions{base: time.Second}
		addr := func(i int) netip.AddrPort {
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 80)
		}
		for i := range 2 * maxSuspensions {
			s.failed("uid", addr(i))
			time.Sleep(time.Nanosecond)
		}
		if n := len(s.by); n > maxSuspensions || n < maxSuspensions/2 {
			t.Errorf("%d endpoints are remembered", n)
		}
		if !s.has("uid", addr(2*maxSuspensions-1)) || s.has("uid", addr(0)) {
			t.Error("not the oldest were forgotten")
		}
	})
}

func TestLoads(t *testing.T) {
	var l loads
	l.add("a", 1)
	l.add("a", 1)
	l.add("b", 1)
	l.add("a", -1)
	l.add("b", -1)
	if l.of("a") != 1 || l.of("b") != 0 || l.of("c") != 0 {
		t.Errorf("loads are %d, %d, %d", l.of("a"), l.of("b"), l.of("c"))
	}
	if n := len(l.shard("b").by); n > 1 {
		t.Errorf("%d workloads in the shard", n)
	}
}

func TestFlagOf(t *testing.T) {
	reset := &tunnel.ResetError{Code: h2.ConnectError}
	revoked := &mtls.RevokedError{}
	for _, tc := range []struct {
		err  error
		want Flag
	}{
		{nil, FlagNone},
		{&DeniedError{Reason: "x"}, FlagDeny},
		{&endedError{&policyChange{}}, FlagDeny},
		{ErrSelfCall, FlagConnect},
		{&StatusError{401}, FlagConnect},
		{os.ErrDeadlineExceeded, FlagConnect},
		{&NetworkPolicyError{Port: 15008, Err: ErrConnectTimeout}, FlagNetworkPolicy},
		{&IdentityError{Err: errors.New("x")}, FlagIdentityError},
		{fmt.Errorf("a: %w", &tunnel.HandshakeError{Err: errors.New("x")}), FlagTLSFailure},
		{&tunnel.HandshakeError{Err: revoked}, FlagCertRevoked},
		{&endedError{revoked}, FlagCertRevoked},
		{&h2.ConnError{Code: h2.ProtocolError}, FlagH2HandshakeFailure},
		{&endedError{reset}, FlagNone},
		{&endedError{fmt.Errorf("application: %w", os.ErrClosed)}, FlagNone},
		{&endedError{fmt.Errorf("%w: %w", tunnel.ErrLost, os.ErrClosed)}, FlagConnect},
		{&endedError{tunnel.ErrDead}, FlagConnect},
		{&endedError{ErrDrain}, FlagConnect},
	} {
		if got := flagOf(tc.err); got != tc.want {
			t.Errorf("%v is flagged %s, want %s", tc.err, got, tc.want)
		}
	}
}
