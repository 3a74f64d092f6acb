package workload_test

import (
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/workload"
	wt "github.com/culvert-mesh/culvert/workload/workloadtest"
)

func TestIdentity(t *testing.T) {
	w := wt.Pod("ns/a", nil)
	if got := w.Identity().String(); got != "spiffe://cluster.local/ns/ns/sa/a" {
		t.Errorf("Identity() = %s", got)
	}
	w.ServiceAccount = "a/b"
	if got := w.Identity(); got != (identity.ID{}) {
		t.Errorf("Identity() of an impossible account = %s", got)
	}
}

// TestEqualSeesEveryField changes each field alone; a new field that Equal
// forgets would be lost in updates.
func TestEqualSeesEveryField(t *testing.T) {
	t.Run("workload", func(t *testing.T) {
		eachField(t, func() *workload.Workload { return wt.Pod("ns/a", []string{"10.0.0.1"}) },
			func(a, b *workload.Workload) bool { return a.Equal(b) })
	})
	t.Run("service", func(t *testing.T) {
		eachField(t, func() *workload.Service { return wt.Service("ns/a", []string{"10.0.0.1"}) },
			func(a, b *workload.Service) bool { return a.Equal(b) })
	})
	if wt.Pod("ns/a", nil).Equal(nil) || wt.Service("ns/a", nil).Equal(nil) {
		t.Error("something equals nil")
	}
}

func eachField[T any](t *testing.T, fresh func() *T, equal func(a, b *T) bool) {
	t.Helper()
	if !equal(fresh(), fresh()) {
		t.Fatal("equal values are not equal")
	}
	rng := rand.New(rand.NewPCG(1, 1))
	typ := reflect.TypeFor[T]()
	for i := range typ.NumField() {
		changed := fresh()
		setOther(rng, reflect.ValueOf(changed).Elem().Field(i))
		if equal(fresh(), changed) || equal(changed, fresh()) {
			t.Errorf("a change of %s goes unseen", typ.Field(i).Name)
		}
	}
}

// setOther sets v to something that it was not.
func setOther(rng *rand.Rand, v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		v.SetString("other")
	case reflect.Bool:
		v.SetBool(!v.Bool())
	case reflect.Int64:
		v.SetInt(v.Int() + 1)
	case reflect.Uint8, reflect.Uint16, reflect.Uint32:
		v.SetUint(v.Uint() + 1)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), v.Len()+1, v.Len()+1))
	case reflect.Map:
		m := reflect.MakeMap(v.Type())
		m.SetMapIndex(reflect.Zero(v.Type().Key()), reflect.Zero(v.Type().Elem()))
		v.Set(m)
	case reflect.Struct:
		setOther(rng, v.Field(rng.IntN(v.NumField())))
	default:
		panic(v.Kind())
	}
}

func TestParseAddresses(t *testing.T) {
	for _, tc := range []struct{ name, in, want string }{
		{"default-network", "/10.0.0.1", "/10.0.0.1"},
		{"network", "net/10.0.0.1", "net/10.0.0.1"},
		{"ipv6", "net/fd00::1", "net/fd00::1"},
		{"mapped", "net/::ffff:10.0.0.1", "net/10.0.0.1"},
		{"no-slash", "10.0.0.1", ""},
		{"no-address", "net/", ""},
		{"host", "ns/example.com", ""},
		{"prefix", "net/10.0.0.0/8", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, err := workload.ParseNetworkAddress(tc.in)
			if (err == nil) != (tc.want != "") || err == nil && a.String() != tc.want {
				t.Errorf("got %v, %v", a, err)
			}
		})
	}
	if p, err := workload.ParseNetworkPrefix("net/10.1.2.3/8"); err != nil || p.String() != "net/10.0.0.0/8" {
		t.Errorf("prefix: %v, %v", p, err)
	}
	for _, bad := range []string{"", "net", "net/10.0.0.1", "net/10.0.0.0/33"} {
		if _, err := workload.ParseNetworkPrefix(bad); err == nil {
			t.Errorf("prefix %q is accepted", bad)
		}
	}
	for _, bad := range []string{"", "host", "ns/", "a/b/c"} {
		if _, err := workload.ParseNamespacedHostname(bad); err == nil {
			t.Errorf("host name %q is accepted", bad)
		}
	}
	for in, want := range map[string]string{
		"net/10.0.0.1": "net/10.0.0.1:15008", "ns/example.com": "ns/example.com:15008",
	} {
		if g, err := workload.ParseGatewayDestination(in, 15008); err != nil || g.String() != want {
			t.Errorf("gateway %q: %v, %v", in, g, err)
		}
	}
	if _, err := workload.ParseGatewayDestination("nothing", 1); err == nil {
		t.Error("a destination without a slash is accepted")
	}
}

func TestFamilies(t *testing.T) {
	v4, v6, mapped := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1"), netip.MustParseAddr("::ffff:10.0.0.1")
	for _, tc := range []struct {
		name           string
		f              workload.IPFamilies
		v4, v6, mapped bool
	}{
		{"automatic", workload.FamiliesAutomatic, true, true, true},
		{"dual", workload.FamiliesDual, true, true, true},
		{"ipv4", workload.FamiliesIPv4, true, false, true},
		{"ipv6", workload.FamiliesIPv6, false, true, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.f.Accepts(v4) != tc.v4 || tc.f.Accepts(v6) != tc.v6 || tc.f.Accepts(mapped) != tc.mapped {
				t.Error("wrong family accepted or refused")
			}
		})
	}
}
