package origdst

import (
	"net/netip"
	"testing"
)

func FuzzParseMessage(f *testing.F) {
	req := request(7, 17, netip.MustParseAddrPort("127.0.0.1:15053"), netip.MustParseAddrPort("10.0.0.2:4444"))
	f.Add(req)
	f.Add(request(7, 17, netip.MustParseAddrPort("[::1]:15053"), netip.MustParseAddrPort("[fd00::2]:4444")))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		attrs, done, err := parseMessage(b, req)
		if !done || err != nil {
			return
		}
		if dst, ok := parseEntry(attrs); ok && (!dst.IsValid() || dst.Port() == 0) {
			t.Fatalf("accepted %v", dst)
		}
	})
}
