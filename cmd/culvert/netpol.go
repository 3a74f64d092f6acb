package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/culvert-mesh/culvert/cmd/internal/access"
	"github.com/culvert-mesh/culvert/cmd/internal/inspect"
	"github.com/culvert-mesh/culvert/cmd/internal/netpolcheck"
	"github.com/culvert-mesh/culvert/cmd/internal/objects"
)

func netpolCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "netpol",
		Short: "Say what a CNI that enforces NetworkPolicies would cut of the mesh, and add what is missing",
	}
	cmd.AddCommand(netpolCheckCommand(kubeFlags.connect), netpolFixCommand(kubeFlags.connect))
	return group(cmd)
}

// connector reaches the cluster that flags name.
type connector func(kubeFlags) (*access.Access, error)

// netpolFlags say where policies come from and what mesh they are judged for.
type netpolFlags struct {
	kube    kubeFlags // -n is the namespace of policies here
	mesh    *string
	files   []string
	assume  []string
	exclude []string
	noDNS   bool
	changed func(flag string) bool
	connect connector
}

func addNetpolFlags(cmd *cobra.Command, connect connector) *netpolFlags {
	f := new(netpolFlags)
	f.kube, f.mesh = addObjectFlags(cmd, "only NetworkPolicies of this namespace; with -f, the namespace of objects that name none (default)")
	flags := cmd.Flags()
	flags.StringSliceVarP(&f.files, "filename", "f", nil, "files or directories to read policies, namespaces and pods from, instead of the cluster; - is the standard input")
	flags.StringSliceVar(&f.assume, "assume-enrolled", nil, "namespaces to judge as if they were labelled for the mesh already; * is all of them")
	flags.StringSliceVar(&f.exclude, "exclude-namespaces", []string{"kube-system"}, "namespaces that are never in the mesh; default as the cluster's agents")
	flags.BoolVar(&f.noDNS, "no-dns-capture", false, "the agents do not capture DNS; default as the cluster's agents")
	f.changed, f.connect = flags.Changed, connect
	cmd.Args = noArguments
	return f
}

// netpolInput is what is judged, and the objects that it came from.
type netpolInput struct {
	netpolcheck.Input
	sources []netpolSource // of NetworkPolicies, in the order in which they were read
}

// netpolSource is a NetworkPolicy as it was read.
type netpolSource struct {
	judged any // the *NetworkPolicy in the input
	object *unstructured.Unstructured
}

// newInput is one without objects.
func (f *netpolFlags) newInput() *netpolInput {
	in := &netpolInput{}
	in.Mesh = netpolcheck.Mesh{DNS: !f.noDNS, Assume: f.assume}
	in.Mesh.Enrolment.Exclude = f.exclude
	return in
}

// load reads files if some are given, else the cluster.
func (f *netpolFlags) load(ctx context.Context, stdin io.Reader) (*netpolInput, *access.Access, error) {
	in := f.newInput()
	if len(f.files) > 0 {
		docs, err := objects.Documents(f.files, stdin)
		if err != nil {
			return nil, nil, err
		}
		return in, nil, in.addDocuments(docs, f.kube.namespace())
	}
	a, err := f.connect(f.kube)
	if err != nil {
		return nil, nil, err
	}
	return in, a, f.loadCluster(ctx, a, in)
}

func (in *netpolInput) addDocuments(docs []objects.Document, namespace string) error {
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	for _, d := range docs {
		if !d.IsObject() {
			continue
		}
		if err := in.add(&unstructured.Unstructured{Object: d.Object}, namespace); err != nil {
			return fmt.Errorf("%s: %w", d.File, err)
		}
	}
	return nil
}

func (in *netpolInput) add(u *unstructured.Unstructured, namespace string) error {
	p, err := in.Add(u, namespace)
	if err == nil && p != nil {
		in.sources = append(in.sources, netpolSource{p, u})
	}
	return err
}

// loadCluster reads all that decides: also what is not in the namespace that is asked about, because peers are.
func (f *netpolFlags) loadCluster(ctx context.Context, a *access.Access, in *netpolInput) error {
	in.Whole = true
	sets, err := a.Kube.AppsV1().DaemonSets(*f.mesh).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list DaemonSets: %w", a.Explain(err))
	}
	agents := inspect.AgentFlags(sets.Items, *f.mesh)
	if f.changed("exclude-namespaces") || len(sets.Items) == 0 {
		agents.Enrolment.Exclude = f.exclude
	}
	in.Mesh.Enrolment = agents.Enrolment
	if !f.changed("no-dns-capture") {
		in.Mesh.DNS = agents.DNS
	}
	all, err := objects.Cluster(ctx, a, []schema.GroupVersionResource{
		{Version: "v1", Resource: "namespaces"},
		{Group: "networking.k8s.io", Version: "v1", Resource: "networkpolicies"},
		{Group: "policy.networking.k8s.io", Version: "v1alpha2", Resource: "clusternetworkpolicies"},
	})
	if err != nil {
		return err
	}
	for _, u := range all {
		if err := in.add(u, ""); err != nil {
			return err
		}
	}
	return in.addPods(ctx, a)
}

// addPods reads pods page by page and keeps what matters of them, and where their addresses are from.
func (in *netpolInput) addPods(ctx context.Context, a *access.Access) error {
	nodes, err := a.Kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list nodes: %w", a.Explain(err))
	}
	networks := []netip.Prefix{}
	for _, n := range nodes.Items {
		for _, block := range append(n.Spec.PodCIDRs, n.Spec.PodCIDR) {
			if p, err := netip.ParsePrefix(block); err == nil && !slices.Contains(networks, p) {
				networks = append(networks, p)
			}
		}
	}
	options := metav1.ListOptions{Limit: 500}
	for {
		pods, err := a.Kube.CoreV1().Pods("").List(ctx, options)
		switch {
		case apierrors.IsResourceExpired(err) && options.Continue != "":
			in.Pods, options.Continue = nil, "" // it took too long: begin again
			continue
		case err != nil:
			return fmt.Errorf("list pods: %w", a.Explain(err))
		}
		for i := range pods.Items {
			p := &pods.Items[i]
			in.AddPod(p)
			for _, ip := range p.Status.PodIPs {
				addr, err := netip.ParseAddr(ip.IP)
				if err == nil && !p.Spec.HostNetwork && !slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Contains(addr) }) {
					networks = append(networks, netip.PrefixFrom(addr, addr.BitLen()))
				}
			}
		}
		if options.Continue = pods.Continue; options.Continue == "" {
			break
		}
	}
	in.Mesh.Networks = networks
	return nil
}

// check judges the input and keeps what was asked about.
func (f *netpolFlags) check(in *netpolInput) []netpolcheck.Finding {
	found := netpolcheck.Check(in.Input)
	if len(f.files) > 0 || f.kube.namespace() == "" {
		return found
	}
	return slices.DeleteFunc(found, func(x netpolcheck.Finding) bool { return x.Namespace != "" && x.Namespace != f.kube.namespace() })
}

func netpolCheckCommand(connect connector) *cobra.Command {
	var output string
	var wrong bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Say which policies cut the mesh, and print the patch",
		Long: `Say, for each NetworkPolicy and ClusterNetworkPolicy, what the mesh needs of a CNI that enforces it, and print the patch for
those that would cut HBONE: TCP 15008 for the same peers as the application's ports.

Policies matter whose pods are in the mesh. With -f, namespaces and pods among the files decide on that; a namespace that is not
among them is taken to be labelled for the mesh. Before you label a namespace, ask with --assume-enrolled.

The exit status is 1 when something is missing, 2 when the question could not be answered.`,
		Example: `  culvert netpol check
  culvert netpol check -n shop --assume-enrolled=shop
  culvert netpol check -f manifests/`,
	}
	f := addNetpolFlags(cmd, connect)
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	cmd.Flags().BoolVar(&wrong, "wrong", false, "show only the policies that somebody has to act on")
	return withTrouble(cmd, func(cmd *cobra.Command, _ []string) error {
		if err := checkOutput(output, "text", "json"); err != nil {
			return err
		}
		in, _, err := f.load(cmd.Context(), cmd.InOrStdin())
		if err != nil {
			return err
		}
		found := f.check(in)
		shown := found
		if wrong {
			shown = slices.DeleteFunc(slices.Clone(found), func(x netpolcheck.Finding) bool { return !x.Wrong() })
		}
		if output == "json" {
			err = writeJSON(cmd.OutOrStdout(), shown)
		} else {
			err = printNetpol(cmd.OutOrStdout(), shown, len(found), in.Mesh.DNS)
		}
		if err != nil {
			return err
		}
		return missing(found)
	})
}
