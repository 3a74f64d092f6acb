package wire_test

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/culvert-mesh/culvert/workload/netpol"
	"github.com/culvert-mesh/culvert/workload/netpol/netpolpb"
	"github.com/culvert-mesh/culvert/workload/netpol/wire"
)

func in(key string, values ...string) *netpol.Selector {
	return &netpol.Selector{Requirements: []netpol.Requirement{{Key: key, Op: netpol.In, Values: values}}}
}

func cidrs(texts ...string) (out []netip.Prefix) {
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

// everything is one object of each kind, and policies with every field.
func everything() []netpol.Object {
	return []netpol.Object{
		&netpol.Policy{
			Tier: netpol.Namespaced, Namespace: "shop", Name: "web", Ingress: true, Egress: true,
			Pods: netpol.Selector{Requirements: []netpol.Requirement{
				{Key: "app", Op: netpol.In, Values: []string{"web", "api"}}, {Key: "old", Op: netpol.DoesNotExist},
				{Key: "tier", Op: netpol.NotIn, Values: []string{"x"}}, {Key: "team", Op: netpol.Exists},
			}},
			IngressRules: []netpol.Rule{
				{Peers: []netpol.Peer{{Pods: in("app", "front")}, {Namespaces: in("team", "a")}, {Namespaces: &netpol.Selector{}, Pods: in("a", "b")}},
					Ports: []netpol.Port{{Port: 80}, {Port: 8000, End: 8999}, {Name: "http"}, {Protocol: netpol.UDP, Port: 53}, {Protocol: netpol.SCTP}}},
				{AnyPeer: true, AnyPort: true},
				{},
			},
			EgressRules: []netpol.Rule{{Peers: []netpol.Peer{{Block: netip.MustParsePrefix("10.0.0.0/8"), Except: cidrs("10.1.0.0/16", "10.2.0.0/16")}}, AnyPort: true}},
		},
		&netpol.Policy{
			Tier: netpol.Admin, Name: "no-evil", Priority: 7, Namespaces: &netpol.Selector{}, Egress: true,
			EgressRules: []netpol.Rule{
				{Name: "one", Action: netpol.Deny, Peers: []netpol.Peer{{Networks: cidrs("0.0.0.0/0", "::/0")}, {Nodes: &netpol.Selector{}}}, AnyPort: true},
				{Name: "two", Action: netpol.Pass, Peers: []netpol.Peer{{Namespaces: in("a", "b")}}, Ports: []netpol.Port{{Protocol: netpol.AnyProtocol, Name: "http"}}},
				{Name: "three", Peers: []netpol.Peer{{Domains: []string{"*.example.com"}}}, AnyPort: true},
				{Name: "four", Action: netpol.Deny, Invalid: "no such peer"},
			},
		},
		&netpol.Policy{Tier: netpol.Baseline, Name: "base", Namespaces: in("a", "b"), Invalid: "what it says"},
		&netpol.Pod{UID: "Kubernetes//Pod/shop/web-1", Namespace: "shop", Labels: netpol.MakeLabels(map[string]string{"app": "web", "b": ""}),
			Ports: []netpol.NamedPort{{Name: "http", Port: 8080}, {Name: "dns", Protocol: netpol.UDP, Port: 53}}},
		&netpol.Pod{UID: "Kubernetes//Pod/shop/web-2", Namespace: "shop"},
		&netpol.Namespace{Name: "shop", Labels: netpol.MakeLabels(map[string]string{"team": "a"})},
		&netpol.Node{Name: "n1", Labels: netpol.MakeLabels(map[string]string{"x": "y"}), Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}},
	}
}

func TestRoundTrip(t *testing.T) {
	for _, o := range everything() {
		value, err := proto.Marshal(wire.ToMessage(o))
		if err != nil {
			t.Fatal(err)
		}
		got, err := wire.Decode(wire.Name(o.Key()), value)
		if err != nil || !reflect.DeepEqual(got, o) {
			t.Errorf("%s:\n got %+v, %v\nwant %+v", o.Key(), got, err, o)
		}
		text, err := wire.EncodeJSON(o)
		if err != nil {
			t.Fatal(err)
		}
		got, err = wire.DecodeJSON(text)
		if p, ok := o.(*netpol.Policy); ok && p.Validate() != nil {
			if err == nil {
				t.Errorf("%s: a faulty policy is read from JSON", o.Key())
			}
			continue
		}
		if err != nil || !reflect.DeepEqual(got, o) {
			t.Errorf("%s as %s:\n got %+v, %v\nwant %+v", o.Key(), text, got, err, o)
		}
	}
}

func TestNames(t *testing.T) {
	for _, o := range everything() {
		if k, err := wire.ParseName(wire.Name(o.Key())); err != nil || k != o.Key() {
			t.Errorf("%s: %v, %v", wire.Name(o.Key()), k, err)
		}
	}
	for _, name := range []string{"", "policy/", "policy/x", "policy/a/", "pod/", "node", "thing/a", "namespace/"} {
		if k, err := wire.ParseName(name); err == nil {
			t.Errorf("%q is %v", name, k)
		}
	}
}

// faulty reports whether a policy allows nothing, and whether only a rule is at fault.
func faulty(p *netpol.Policy) (policy, rule bool) {
	for _, r := range append(append([]netpol.Rule{}, p.IngressRules...), p.EgressRules...) {
		rule = rule || strings.Contains(r.Invalid, "does not know")
	}
	return p.Invalid != "", rule
}

// TestUnknownFields adds a field that nobody knows to every message inside of policies: each time the policy, or the rule
// that the message is in, is spoilt.
func TestUnknownFields(t *testing.T) {
	unknown := protowire.AppendVarint(protowire.AppendTag(nil, 900, protowire.VarintType), 1)
	places := 0
	for _, o := range everything() {
		if _, ok := o.(*netpol.Policy); !ok {
			continue
		}
		var visit func(m protoreflect.Message, path string)
		root := wire.ToMessage(o)
		visit = func(m protoreflect.Message, path string) {
			if r, ok := m.Interface().(*netpolpb.Rule); ok && r.GetInvalid() != "" {
				return // is at fault anyhow
			}
			m.SetUnknown(unknown)
			value, err := proto.Marshal(root)
			if err != nil {
				t.Fatal(err)
			}
			m.SetUnknown(nil)
			places++
			got, err := wire.Decode(wire.Name(o.Key()), value)
			p, ok := got.(*netpol.Policy)
			if !ok || (err != nil) != (path == "") {
				t.Fatalf("%s at %q: %v, %v", o.Key(), path, got, err)
			}
			policy, rule := faulty(p)
			if inRule := strings.Contains(path, "_rules"); inRule && !rule || !inRule && !policy {
				t.Errorf("%s: a field that nobody knows at %q changes nothing: %+v", o.Key(), path, p)
			}
			m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
				at := path + "/" + string(f.Name())
				switch {
				case f.Message() == nil || f.IsMap():
				case f.IsList():
					for i := range v.List().Len() {
						visit(v.List().Get(i).Message(), at)
					}
				default:
					visit(v.Message(), at)
				}
				return true
			})
		}
		visit(root.ProtoReflect(), "")
	}
	if places < 40 {
		t.Errorf("only %d places", places)
	}
}

func TestStandIn(t *testing.T) {
	ok, err := proto.Marshal(wire.ToMessage(everything()[0]))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		value  []byte
		tier   netpol.Tier
		nobody bool
	}{
		{"policy/shop/web", []byte{0xff}, netpol.Namespaced, false},
		{"policy/shop/other", ok, netpol.Namespaced, false},
		{"policy//all", []byte{0xff}, netpol.Admin, false},
		{"policy//all", nil, netpol.Admin, false},
		{"pod/a//Pod/b/c", []byte{0xff}, 0, true},
		{"namespace/a", ok, 0, true},
		{"what/a", ok, 0, true},
	} {
		o, err := wire.Decode(tc.name, tc.value)
		if err == nil {
			t.Fatalf("%s: no error", tc.name)
		}
		if tc.nobody {
			if o != nil {
				t.Errorf("%s: %+v", tc.name, o)
			}
			continue
		}
		p := o.(*netpol.Policy)
		if p.Invalid == "" || p.Tier != tc.tier || !p.Ingress || !p.Egress || len(p.Pods.Requirements) > 0 || (p.Namespace == "") != (p.Namespaces != nil) || wire.Name(p.Key()) != tc.name {
			t.Errorf("%s: %+v", tc.name, p)
		}
	}
}

// TestFaults are messages of which a part is missing or no value.
func TestFaults(t *testing.T) {
	rule := func(r *netpolpb.Rule) *netpolpb.Policy {
		return &netpolpb.Policy{Tier: netpolpb.Tier_NAMESPACED, Namespace: "a", Name: "b", Pods: &netpolpb.Selector{}, Ingress: true, IngressRules: []*netpolpb.Rule{r}}
	}
	for name, m := range map[string]*netpolpb.Policy{
		"no subject":       {Tier: netpolpb.Tier_NAMESPACED, Namespace: "a", Name: "b", Ingress: true},
		"no direction":     {Tier: netpolpb.Tier_NAMESPACED, Namespace: "a", Name: "b", Pods: &netpolpb.Selector{}},
		"unknown tier":     {Tier: 9, Namespace: "a", Name: "b", Pods: &netpolpb.Selector{}, Ingress: true},
		"unknown operator": {Tier: netpolpb.Tier_NAMESPACED, Namespace: "a", Name: "b", Ingress: true, Pods: &netpolpb.Selector{Requirements: []*netpolpb.Requirement{{Key: "a", Op: 9}}}},
		"unknown action":   rule(&netpolpb.Rule{Action: 9, AnyPeer: true, AnyPort: true}),
		"no action":        rule(&netpolpb.Rule{AnyPeer: true, AnyPort: true}),
		"no kind of peer":  rule(&netpolpb.Rule{Action: netpolpb.Action_ALLOW, AnyPort: true, Peers: []*netpolpb.Peer{{}}}),
		"no block":         rule(&netpolpb.Rule{Action: netpolpb.Action_ALLOW, AnyPort: true, Peers: []*netpolpb.Peer{{Kind: &netpolpb.Peer_Block{Block: &netpolpb.Block{Cidr: "10/8"}}}}}),
		"no exception": rule(&netpolpb.Rule{Action: netpolpb.Action_ALLOW, AnyPort: true, Peers: []*netpolpb.Peer{{Kind: &netpolpb.Peer_Block{
			Block: &netpolpb.Block{Cidr: "10.0.0.0/8", Except: []string{"x"}}}}}}),
		"large port":       rule(&netpolpb.Rule{Action: netpolpb.Action_ALLOW, AnyPeer: true, Ports: []*netpolpb.Port{{Protocol: netpolpb.Protocol_TCP, Port: 65536}}}),
		"unknown protocol": rule(&netpolpb.Rule{Action: netpolpb.Action_ALLOW, AnyPeer: true, Ports: []*netpolpb.Port{{Protocol: 9, Port: 80}}}),
	} {
		o, err := wire.FromMessage(&netpolpb.Object{Object: &netpolpb.Object_Policy{Policy: m}})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		p := o.(*netpol.Policy)
		if p.Validate() == nil {
			t.Errorf("%s: no fault in %+v", name, p)
		}
		set := netpol.New()
		set.Apply([]netpol.Object{p, &netpol.Namespace{Name: "a"}, &netpol.Pod{UID: "u", Namespace: "a"}}, nil)
		q := netpol.Query{Subject: "u", PeerAddr: netip.MustParseAddr("10.0.0.1"), Port: 80}
		if d := set.Snapshot().Evaluate(q); d.Allowed {
			t.Errorf("%s: %+v", name, d)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, o := range everything() {
		value, err := proto.Marshal(wire.ToMessage(o))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire.Name(o.Key()), value)
		f.Add("policy/a/b", value[:len(value)-1])
	}
	f.Fuzz(func(t *testing.T, name string, value []byte) {
		o, err := wire.Decode(name, value)
		if err != nil {
			if p, ok := o.(*netpol.Policy); ok && p.Invalid == "" {
				t.Errorf("the stand-in for %q allows: %+v", name, p)
			}
			return
		}
		if wire.Name(o.Key()) != name {
			t.Fatalf("%q is %s", name, o.Key())
		}
		again, err := proto.Marshal(wire.ToMessage(o))
		if err != nil {
			t.Fatal(err)
		}
		next, err := wire.Decode(name, again)
		if err != nil {
			t.Fatalf("%+v cannot be read again: %v", o, err)
		}
		p, ok := o.(*netpol.Policy)
		if !ok {
			if !reflect.DeepEqual(o, next) {
				t.Errorf("%+v is read again as %+v", o, next)
			}
			return
		}
		// Faults may be told in other words the second time, but stay.
		if (p.Validate() == nil) != (next.(*netpol.Policy).Validate() == nil) {
			t.Errorf("%+v is read again as %+v", o, next)
		}
	})
}
