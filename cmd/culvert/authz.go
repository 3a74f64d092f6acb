package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/culvert-mesh/culvert/cmd/internal/access"
	"github.com/culvert-mesh/culvert/cmd/internal/authz"
	"github.com/culvert-mesh/culvert/cmd/internal/objects"
)

func authzCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "authz",
		Short: "Say who may talk to whom, suggest policies, and find mistakes in them",
	}
	cmd.AddCommand(authzCheckCommand(), authzSuggestCommand(), authzLintCommand())
	return group(cmd)
}

// authzFlags say where objects come from and what mesh they are of.
type authzFlags struct {
	kube     kubeFlags // -n is the namespace of workloads here
	mesh     *string
	files    []string
	settings authz.Settings
	given    func(flag string) bool
}

func addAuthzFlags(cmd *cobra.Command, filesUsage string) *authzFlags {
	f := new(authzFlags)
	f.kube, f.mesh = addObjectFlags(cmd, "namespace of workloads, and of objects in files that name none; default that of the kubeconfig")
	flags := cmd.Flags()
	flags.StringSliceVarP(&f.files, "filename", "f", nil, filesUsage)
	flags.StringVar(&f.settings.TrustDomain, "trust-domain", "", "trust domain of the mesh; default what the cluster's ConfigMap culvert says, then cluster.local")
	flags.StringSliceVar(&f.settings.TrustDomainAliases, "trust-domain-aliases", nil, "further names of the trust domain; default as the cluster's")
	flags.StringVar(&f.settings.RootNamespace, "root-namespace", "", "namespace whose policies hold for the whole mesh; default as the cluster's, then culvert-system")
	flags.BoolVar(&f.settings.LenientL7, "lenient-l7", false, "read layer 7 conditions as the controller does with that option; default as the cluster's")
	f.given = flags.Changed
	return f
}

// workloadNamespace is where workloads are looked for whose namespace is not said.
func (f *authzFlags) workloadNamespace() string {
	if ns := f.kube.namespace(); ns != "" {
		return ns
	}
	if ns, _, err := f.kube.ToRawKubeConfigLoader().Namespace(); err == nil && ns != "" {
		return ns
	}
	return "default"
}

// load reads the objects: those of the files if some are given, else the cluster's.
func (f *authzFlags) load(cmd *cobra.Command) (*authz.World, error) {
	if len(f.files) > 0 {
		all, err := objects.Files(f.files, cmd.InOrStdin())
		if err != nil {
			return nil, err
		}
		return authz.New(all, f.workloadNamespace(), f.settings)
	}
	all, err := f.cluster(cmd)
	if err != nil {
		return nil, err
	}
	return authz.New(all, "", f.settings)
}

// cluster reads the cluster's objects and the settings of its mesh.
func (f *authzFlags) cluster(cmd *cobra.Command) ([]*unstructured.Unstructured, error) {
	a, err := f.kube.connect()
	if err != nil {
		return nil, err
	}
	if err := f.readSettings(cmd, a); err != nil {
		return nil, err
	}
	return objects.Cluster(cmd.Context(), a, authz.GroupResources())
}

// readSettings takes what flags do not say from where controllers have it.
func (f *authzFlags) readSettings(cmd *cobra.Command, a *access.Access) error {
	m, err := a.Kube.CoreV1().ConfigMaps(*f.mesh).Get(cmd.Context(), "culvert", metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		m = &corev1.ConfigMap{} // policies can be judged before a mesh is there
	case err != nil:
		return fmt.Errorf("read settings of the mesh: %w", a.Explain(err))
	}
	s := &f.settings
	for _, one := range []struct {
		flag, key string
		into      *string
	}{
		{"trust-domain", "TRUST_DOMAIN", &s.TrustDomain}, {"root-namespace", "CULVERT_ROOT_NAMESPACE", &s.RootNamespace},
		{"", "CLUSTER_DOMAIN", &s.Domain}, {"", "CLUSTER_ID", &s.ClusterID}, {"", "NETWORK", &s.Network},
	} {
		if one.flag == "" || !f.given(one.flag) {
			*one.into = m.Data[one.key]
		}
	}
	if s.RootNamespace == "" {
		s.RootNamespace = *f.mesh
	}
	if text := m.Data["TRUST_DOMAIN_ALIASES"]; text != "" && !f.given("trust-domain-aliases") {
		s.TrustDomainAliases = strings.Split(text, ",")
	}
	if text := m.Data["CULVERT_LENIENT_L7"]; text != "" && !f.given("lenient-l7") {
		if s.LenientL7, err = strconv.ParseBool(text); err != nil {
			return fmt.Errorf("read settings of the mesh: CULVERT_LENIENT_L7: %w", err)
		}
	}
	return nil
}

// ref reads the name of a workload.
func (f *authzFlags) ref(text string) (authz.Ref, error) {
	return authz.ParseRef(text, f.workloadNamespace())
}

// writeText writes lines that may hold foreign text, without control characters.
func writeText(out io.Writer, text string) error {
	_, err := io.WriteString(out, strings.Map(func(r rune) rune {
		if r != '\n' && !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "?")))
	return err
}
