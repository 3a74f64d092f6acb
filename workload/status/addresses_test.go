package status_test

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/culvert-mesh/culvert/workload/source/kube"
)

func allocated(pairs ...string) []kube.HostAddress {
	var out []kube.HostAddress
	for i := 0; i+1 < len(pairs); i += 2 {
		out = append(out, kube.HostAddress{Host: pairs[i], Addr: netip.MustParseAddr(pairs[i+1])})
	}
	return out
}

// entry is a ServiceEntry whose status has these addresses.
func entry(of ...kube.HostAddress) *unstructured.Unstructured {
	u := object("networking.istio.io/v1", "ServiceEntry", foreign)
	var list []any
	for _, a := range of {
		list = append(list, map[string]any{"host": a.Host, "value": a.Addr.String()})
	}
	u.Object["status"].(map[string]any)["addresses"] = list
	return u
}

func TestAddresses(t *testing.T) {
	for _, tc := range []struct {
		name       string
		want, have []kube.HostAddress
		status     map[string]any
	}{
		{"new", allocated("a.example.com", "240.240.0.1", "a.example.com", "2001:2::1"), nil, map[string]any{
			"conditions": []any{foreign}, "addresses": []any{
				map[string]any{"host": "a.example.com", "value": "240.240.0.1"}, map[string]any{"host": "a.example.com", "value": "2001:2::1"},
			},
		}},
		{"kept", allocated("a", "240.240.0.1"), allocated("a", "240.240.0.1"), map[string]any{
			"conditions": []any{foreign}, "addresses": []any{map[string]any{"host": "a", "value": "240.240.0.1"}},
		}},
		{"taken-away", nil, allocated("a", "240.240.0.1"), map[string]any{"conditions": []any{foreign}, "addresses": []any{}}},
		{"none", nil, nil, map[string]any{"conditions": []any{foreign}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := start(t, entry(tc.have...))
				r := report(entries, "ServiceEntry")
				r.Addresses, r.HaveAddresses = tc.want, tc.have
				l.source.set(r)
				got := l.take()
				if len(got) != 1 {
					t.Fatalf("%d writes, want 1", len(got))
				}
				if d := cmp.Diff(tc.status, got[0]["status"]); d != "" {
					t.Error(d)
				}
			})
		})
	}
}

// Addresses that somebody else has written since are not overwritten: what is
// wanted is found anew when they are seen.
func TestAddressesOfOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		theirs := allocated("a", "240.240.7.7")
		l := start(t, entry(theirs...))
		r := report(entries, "ServiceEntry")
		r.Addresses = allocated("a", "240.240.0.1")
		l.source.set(r)
		if n := len(l.take()); n != 0 {
			t.Fatalf("%d writes over what others have written", n)
		}
		r.Addresses, r.HaveAddresses = allocated("a", "240.240.7.7", "b", "240.240.0.2"), theirs
		l.source.set(r)
		time.Sleep(time.Second)
		if got := l.take(); len(got) != 1 {
			t.Fatalf("%d writes, want 1", len(got))
		}
	})
}
