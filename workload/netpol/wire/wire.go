// Package wire converts the objects of package netpol to messages of the xDS
// type TypeURL and back, for the controller that publishes them, for the agents
// and for files, which have the same in JSON.
//
// Decoding is strict. What a message says and this version does not know spoils
// the rule that it is in, or else the whole policy, which then allows nothing:
// the result is never wider than what was sent.
//
// All functions are pure and may be called concurrently.
package wire

import (
	"errors"
	"fmt"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/culvert-mesh/culvert/workload/netpol"
	"github.com/culvert-mesh/culvert/workload/netpol/netpolpb"
)

// TypeURL is the type of the resources, each of which is one object.
const TypeURL = "type.googleapis.com/culvert.netpol.v1.Object"

const (
	policies   = "policy/"
	pods       = "pod/"
	namespaces = "namespace/"
	nodes      = "node/"
)

// Name returns the name of the resource that the object with the key is.
func Name(k netpol.Key) string {
	switch k.Kind {
	case netpol.KindPolicy:
		return policies + k.Namespace + "/" + k.Name
	case netpol.KindPod:
		return pods + k.Name
	case netpol.KindNamespace:
		return namespaces + k.Name
	case netpol.KindNode:
		return nodes + k.Name
	default:
		return ""
	}
}

// ParseName returns the key of the object that is the resource of that name.
func ParseName(name string) (netpol.Key, error) {
	for _, k := range []struct {
		prefix string
		kind   netpol.Kind
	}{{pods, netpol.KindPod}, {namespaces, netpol.KindNamespace}, {nodes, netpol.KindNode}} {
		if rest, ok := strings.CutPrefix(name, k.prefix); ok && rest != "" {
			return netpol.Key{Kind: k.kind, Name: rest}, nil
		}
	}
	if rest, ok := strings.CutPrefix(name, policies); ok {
		if namespace, short, ok := strings.Cut(rest, "/"); ok && short != "" {
			return netpol.Key{Kind: netpol.KindPolicy, Namespace: namespace, Name: short}, nil
		}
	}
	return netpol.Key{}, fmt.Errorf("resource name %q is none of an object of network policies", name)
}

// Decode reads the resource of that name. With an error the object, unless nil,
// is the policy that stands in for the one that cannot be read: it allows nothing
// to all that the name says that it might govern. Where there is no object,
// whatever was known under the name is not true any more.
func Decode(name string, value []byte) (netpol.Object, error) {
	key, err := ParseName(name)
	if err != nil {
		return nil, err
	}
	var m netpolpb.Object
	if err := proto.Unmarshal(value, &m); err != nil {
		return standIn(key, err), fmt.Errorf("decode %s: %w", key, err)
	}
	o, err := FromMessage(&m)
	if err == nil && o.Key() != key {
		err = fmt.Errorf("it is %s", o.Key())
	}
	if err != nil {
		return standIn(key, err), fmt.Errorf("decode %s: %w", key, err)
	}
	return o, nil
}

// standIn returns what takes the place of a policy that cannot be read.
func standIn(k netpol.Key, cause error) netpol.Object {
	if k.Kind != netpol.KindPolicy {
		return nil
	}
	return Spoilt(&netpol.Policy{Namespace: k.Namespace, Name: k.Name}, cause.Error())
}

// Spoilt returns a policy in the place of p, of which something cannot be told or
// read: it allows nothing to all that p may have been meant for, which is the pods
// of its namespace, or all.
func Spoilt(p *netpol.Policy, why string) *netpol.Policy {
	out := &netpol.Policy{
		Tier: p.Tier, Namespace: p.Namespace, Name: p.Name, Priority: p.Priority, Ingress: true, Egress: true, Invalid: why,
	}
	switch {
	case p.Namespace != "":
		out.Tier = netpol.Namespaced
	case p.Tier != netpol.Baseline:
		out.Tier = netpol.Admin
	}
	if p.Namespace == "" {
		out.Namespaces = &netpol.Selector{}
	}
	return out
}

// DecodeJSON reads an object in JSON, as EncodeJSON writes it. What it does not
// know, or would spoil a policy, is an error.
func DecodeJSON(text []byte) (netpol.Object, error) {
	var m netpolpb.Object
	if err := protojson.Unmarshal(text, &m); err != nil {
		return nil, errors.New(strings.Join(strings.Fields(strings.ReplaceAll(err.Error(), "\u00a0", " ")), " "))
	}
	o, err := FromMessage(&m)
	if err != nil {
		return nil, err
	}
	if p, ok := o.(*netpol.Policy); ok {
		if err := p.Validate(); err != nil {
			return nil, err
		}
	}
	return o, nil
}

// EncodeJSON writes an object in JSON, for files and for people. Its spaces vary
// from one version of this program to another.
func EncodeJSON(o netpol.Object) ([]byte, error) {
	m := ToMessage(o)
	if m == nil {
		return nil, fmt.Errorf("encode object: a %T is none", o)
	}
	return protojson.Marshal(m)
}
