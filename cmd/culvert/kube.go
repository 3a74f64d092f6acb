package main

import (
	"cmp"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/rest"

	"github.com/culvert-mesh/culvert/cmd/internal/access"
	"github.com/culvert-mesh/culvert/deploy"
)

// kubeFlags are the flags that say which cluster, and which namespace of it Culvert is in.
type kubeFlags struct {
	*genericclioptions.ConfigFlags
}

// addKubeFlags declares them. kubectl has more; these are the ones that a person types.
func addKubeFlags(cmd *cobra.Command) kubeFlags {
	kubeconfig, context, namespace := "", "", deploy.Namespace
	f := kubeFlags{genericclioptions.NewConfigFlags(true)}
	f.KubeConfig, f.Context, f.Namespace = &kubeconfig, &context, &namespace
	flags := cmd.Flags()
	flags.StringVar(&kubeconfig, "kubeconfig", "", "file that says how to reach the cluster; default $KUBECONFIG, then ~/.kube/config")
	flags.StringVar(&context, "context", "", "context of the kubeconfig")
	flags.StringVarP(&namespace, "namespace", "n", deploy.Namespace, "namespace that Culvert is in")
	return f
}

// addObjectFlags declares the flags of commands that judge objects: -n is the namespace of objects there, and mesh the one
// that Culvert is in.
func addObjectFlags(cmd *cobra.Command, namespaceUsage string) (f kubeFlags, mesh *string) {
	kubeconfig, context, namespace := "", "", ""
	f = kubeFlags{genericclioptions.NewConfigFlags(true)}
	f.KubeConfig, f.Context, f.Namespace = &kubeconfig, &context, &namespace
	flags := cmd.Flags()
	flags.StringVar(&kubeconfig, "kubeconfig", "", "file that says how to reach the cluster; default $KUBECONFIG, then ~/.kube/config")
	flags.StringVar(&context, "context", "", "context of the kubeconfig")
	flags.StringVarP(&namespace, "namespace", "n", "", namespaceUsage)
	return f, flags.String("mesh-namespace", deploy.Namespace, "namespace that Culvert is in")
}

// errNoCluster says that nothing names a cluster; kubectl would try localhost then.
var errNoCluster = errors.New("find cluster: no kubeconfig: set --kubeconfig or $KUBECONFIG")

// connect makes the clients; nothing is sent yet.
func (f kubeFlags) connect() (*access.Access, error) {
	if !f.configured() {
		return nil, errNoCluster
	}
	if err := f.namesCluster(); err != nil {
		return nil, err
	}
	return access.Connect(f)
}

// namesCluster returns an error for a kubeconfig that leads to no cluster: the library would try localhost then. What cannot
// be read is left to it to tell.
func (f kubeFlags) namesCluster() error {
	raw, err := f.ToRawKubeConfigLoader().RawConfig()
	if err != nil {
		return nil //nolint:nilerr // see above
	}
	if _, err := rest.InClusterConfig(); err == nil {
		return nil
	}
	name := cmp.Or(*f.Context, raw.CurrentContext)
	if name == "" {
		return errors.New("find cluster: the kubeconfig has no current context: give --context")
	}
	if c := raw.Contexts[name]; c != nil && raw.Clusters[c.Cluster] == nil {
		return fmt.Errorf("find cluster: context %s names cluster %q, which the kubeconfig does not have", name, c.Cluster)
	}
	return nil
}

// configured reports whether something names a cluster: a kubeconfig, or the pod that this runs in. A kubeconfig that
// cannot be read counts: the error comes when it is used.
func (f kubeFlags) configured() bool {
	raw, err := f.ToRawKubeConfigLoader().RawConfig()
	if err != nil || len(raw.Clusters) > 0 || len(raw.Contexts) > 0 {
		return true
	}
	_, err = rest.InClusterConfig()
	return err == nil
}

// namespace returns where Culvert is or is to be.
func (f kubeFlags) namespace() string { return *f.Namespace }
