package kubenode

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"
)

// tunnelAnnotations are where CNIs keep the address by which a node's own processes reach pods of other nodes.
func tunnelAnnotations() []string {
	return []string{
		"projectcalico.org/IPv4VXLANTunnelAddr", "projectcalico.org/IPv6VXLANTunnelAddr", "projectcalico.org/IPv4IPIPTunnelAddr",
		"network.cilium.io/ipv4-cilium-host", "network.cilium.io/ipv6-cilium-host",
	}
}

type node struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              nodeSpec   `json:"spec"`
	Status            nodeStatus `json:"status"`
}

type nodeSpec struct {
	PodCIDR  string   `json:"podCIDR,omitempty"`
	PodCIDRs []string `json:"podCIDRs,omitempty"`
}

type nodeStatus struct {
	Addresses []nodeAddress `json:"addresses,omitempty"`
}

type nodeAddress struct {
	Type    string `json:"type"`
	Address string `json:"address"`
}

// DeepCopyObject implements runtime.Object.
func (n *node) DeepCopyObject() runtime.Object {
	out := *n
	n.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	out.Spec.PodCIDRs, out.Status.Addresses = slices.Clone(n.Spec.PodCIDRs), slices.Clone(n.Status.Addresses)
	return &out
}

// addrs returns the addresses from which processes of the node may reach pods elsewhere: the node's own, the first two
// of its pod ranges (which VXLAN and bridge interfaces of many CNIs have), and those that a CNI has noted.
func (n *node) addrs() []netip.Addr {
	var out []netip.Addr
	add := func(text string) {
		if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" && !a.IsLoopback() && !a.IsUnspecified() && !a.IsMulticast() {
			out = append(out, a.Unmap())
		}
	}
	for _, a := range n.Status.Addresses {
		if a.Type == "InternalIP" || a.Type == "ExternalIP" {
			add(a.Address)
		}
	}
	for _, r := range append(slices.Clone(n.Spec.PodCIDRs), n.Spec.PodCIDR) {
		if p, err := netip.ParsePrefix(r); err == nil {
			add(p.Masked().Addr().String())
			add(p.Masked().Addr().Next().String())
		}
	}
	for _, key := range tunnelAnnotations() {
		text, _, _ := strings.Cut(n.Annotations[key], "/")
		add(text)
	}
	return out
}

func trimNode(obj any) (any, error) {
	n, ok := obj.(*node)
	if !ok {
		return obj, nil
	}
	kept := map[string]string{}
	for _, key := range tunnelAnnotations() {
		if v, present := n.Annotations[key]; present {
			kept[key] = v
		}
	}
	n.ObjectMeta = metav1.ObjectMeta{Name: n.Name, UID: n.UID, ResourceVersion: n.ResourceVersion, Annotations: kept}
	return n, nil
}

// hosts follows the addresses of all nodes, for ports that processes of hosts may reach without mTLS. Nobody waits for
// it: without its word these ports are closed.
type hosts struct {
	informer cache.SharedIndexInformer
	dirty    chan struct{} // capacity 1

	mu    sync.Mutex
	known []netip.Addr // sorted
}

const hostsPause = 2 * time.Second // a cluster that scales changes many nodes at once

func (c *client) nodes() cache.ListerWatcher {
	return cache.NewListWatchFromClient(c.rest, "nodes", metav1.NamespaceAll, fields.Everything())
}

func newHosts(c *client) (*hosts, error) {
	h := &hosts{informer: cache.NewSharedIndexInformer(c.nodes(), &node{}, 0, nil), dirty: make(chan struct{}, 1)}
	if err := h.informer.SetTransform(trimNode); err != nil {
		return nil, err
	}
	touch := func() {
		select {
		case h.dirty <- struct{}{}:
		default:
		}
	}
	_, err := h.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { touch() },
		UpdateFunc: func(old, is any) {
			was, ok1 := old.(*node)
			n, ok2 := is.(*node)
			if !ok1 || !ok2 || !slices.Equal(was.addrs(), n.addrs()) {
				touch()
			}
		},
		DeleteFunc: func(any) { touch() },
	})
	return h, err
}

// run calls changed when the addresses are others, until ctx ends.
func (h *hosts) run(ctx context.Context, changed func()) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { h.informer.RunWithContext(ctx) })
	pause := time.NewTicker(hostsPause)
	defer pause.Stop()
	for {
		select {
		case <-h.dirty:
			if h.collect() {
				changed()
			}
		case <-ctx.Done():
			return
		}
		select {
		case <-pause.C:
		case <-ctx.Done():
			return
		}
	}
}

func (h *hosts) collect() (changed bool) {
	var all []netip.Addr
	for _, obj := range h.informer.GetStore().List() {
		if n, ok := obj.(*node); ok {
			all = append(all, n.addrs()...)
		}
	}
	slices.SortFunc(all, netip.Addr.Compare)
	all = slices.Compact(all)
	h.mu.Lock()
	defer h.mu.Unlock()
	changed = !slices.Equal(all, h.known)
	h.known = all
	return changed
}

// addrs returns the addresses, which the caller does not change.
func (h *hosts) addrs() []netip.Addr {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.known
}
