package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"helm.sh/helm/v3/pkg/action"
	"helm.sh/helm/v3/pkg/chartutil"
	helmvalues "helm.sh/helm/v3/pkg/cli/values"
	"helm.sh/helm/v3/pkg/getter"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/culvert-mesh/culvert/cmd/internal/installer"
	"github.com/culvert-mesh/culvert/deploy"
)

// valueFlags are where the chart's values come from.
type valueFlags struct {
	profile string
	helmvalues.Options
}

func (f *valueFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.profile, "values-profile", "", "values for a distribution: "+strings.Join(deploy.Profiles(), ", "))
	flags.StringSliceVarP(&f.ValueFiles, "values", "f", nil, "file of values, over those of the profile (- reads standard input)")
	flags.StringArrayVar(&f.Values, "set", nil, "key=value, over files and profile")
	flags.StringArrayVar(&f.StringValues, "set-string", nil, "key=value that stays text")
}

// merge returns the values, the most explicit on top.
func (f *valueFlags) merge() (map[string]any, error) {
	values, err := f.MergeValues(getter.Providers{})
	if err != nil {
		return nil, fmt.Errorf("read values: %w", err)
	}
	if f.profile == "" {
		return values, nil
	}
	profile, err := deploy.Profile(f.profile)
	if err != nil {
		return nil, fmt.Errorf("--values-profile: %w", err)
	}
	return chartutil.CoalesceTables(values, profile), nil
}

// changeFlags are those that install and upgrade share.
type changeFlags struct {
	kube     kubeFlags
	values   valueFlags
	crds     string
	wait     bool
	timeout  time.Duration
	keep     bool
	dryRun   bool
	reset    bool
	takeOver bool
}

func (f *changeFlags) add(cmd *cobra.Command) {
	f.kube = addKubeFlags(cmd)
	f.values.add(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.crds, "crds", string(installer.ApplyCRDs), "custom resource definitions: apply those that are absent or older, skip them, or only them")
	flags.BoolVar(&f.wait, "wait", true, "wait until all is ready, and undo the change when it does not become so")
	flags.DurationVar(&f.timeout, "timeout", 5*time.Minute, "how long to wait")
	flags.BoolVar(&f.keep, "keep-failed", false, "leave what does not become ready as it is, to be looked at")
	flags.BoolVar(&f.dryRun, "dry-run", false, "print the manifests (or the definitions, with --crds=only) and do nothing; needs no cluster")
}

// options checks the flags and gathers them.
func (f *changeFlags) options() (installer.Options, error) {
	mode := installer.CRDMode(f.crds)
	switch mode {
	case installer.ApplyCRDs, installer.SkipCRDs, installer.OnlyCRDs:
	default:
		return installer.Options{}, misused("--crds=%s: want apply, skip or only", f.crds)
	}
	if problems := validation.IsDNS1123Label(f.kube.namespace()); len(problems) > 0 {
		return installer.Options{}, misused("--namespace %q: %s", f.kube.namespace(), strings.Join(problems, "; "))
	}
	values, err := f.values.merge()
	if err != nil {
		return installer.Options{}, err
	}
	return installer.Options{
		Values: values, CRDs: mode, Wait: f.wait, Timeout: f.timeout, KeepFailed: f.keep,
		ResetValues: f.reset, TakeOver: f.takeOver,
	}, nil
}

// run makes the change, or prints what it would be made of.
func (f *changeFlags) run(cmd *cobra.Command, change func(*installer.Installer, context.Context, installer.Options) error) error {
	o, err := f.options()
	if err != nil {
		return err
	}
	if f.dryRun {
		return printManifests(cmd.OutOrStdout(), f.kube.namespace(), o)
	}
	i, err := newInstaller(f.kube, cmd.OutOrStdout())
	if err != nil {
		return err
	}
	return change(i, cmd.Context(), o)
}

func installCommand() *cobra.Command {
	var f changeFlags
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Install Culvert into a cluster",
		Long: `Install Culvert into the cluster of the kubeconfig: custom resource definitions where they are absent or older, then the
chart, which this program brings. It waits until controller and agents are ready; if they do not become so it says why and
removes them again.`,
		Example: `  culvert install --set image.repository=registry.example.com/culvert
  culvert install --values-profile=k3s
  culvert install --dry-run | kubectl apply --dry-run=server -f -`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd, (*installer.Installer).Install) },
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&f.takeOver, "take-over", false, "install where istio-cni or ztunnel already capture; pods must not be in both")
	return cmd
}

func upgradeCommand() *cobra.Command {
	var f changeFlags
	cmd := &cobra.Command{
		Use:   "upgrade",
		Short: "Change an installation to this version, or its values",
		Long: `Change an installation to this program's version and the given values, which go over those of the last time. It waits
until all is ready; if it does not become so it says why and restores what was there.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd, (*installer.Installer).Upgrade) },
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&f.reset, "reset-values", false, "forget the values of the last time")
	return cmd
}

func uninstallCommand() *cobra.Command {
	var o installer.UninstallOptions
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove Culvert from a cluster",
		Long: `Remove Culvert. Each agent takes its node's pods out of the mesh first: they go on without restart. The custom resource
definitions stay, and with them the resources that were made of them.`,
		Args: noArguments,
	}
	kube := addKubeFlags(cmd)
	flags := cmd.Flags()
	flags.DurationVar(&o.Timeout, "timeout", 5*time.Minute, "how long to wait for the agents to clean their nodes")
	flags.BoolVar(&o.KeepCA, "keep-ca", false, "keep the authority's Secret, so that a later installation has the same root")
	flags.BoolVar(&o.DeleteNamespace, "delete-namespace", false, "delete the namespace too, with whatever else is in it")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		i, err := newInstaller(kube, cmd.OutOrStdout())
		if err != nil {
			return err
		}
		return i.Uninstall(cmd.Context(), o)
	}
	return cmd
}

// newInstaller joins cluster, Helm and the chart of this version.
func newInstaller(kube kubeFlags, out io.Writer) (*installer.Installer, error) {
	a, err := kube.connect()
	if err != nil {
		return nil, err
	}
	helm := new(action.Configuration)
	if err := helm.Init(kube.ConfigFlags, kube.namespace(), "secret", func(string, ...any) {}); err != nil {
		return nil, fmt.Errorf("prepare Helm: %w", err)
	}
	chart, err := deploy.Chart(version)
	if err != nil {
		return nil, err
	}
	return installer.New(installer.Config{Access: a, Helm: helm, Chart: chart, Namespace: kube.namespace(), Out: out})
}

// printManifests writes what would be applied: the namespace and the rendered chart, or the definitions.
func printManifests(out io.Writer, namespace string, o installer.Options) error {
	if o.CRDs == installer.OnlyCRDs {
		return deploy.WriteCRDs(out)
	}
	chart, err := deploy.Chart(version)
	if err != nil {
		return err
	}
	text, err := deploy.Render(chart, namespace, o.Values)
	if err != nil {
		return err
	}
	_, err = io.WriteString(out, deploy.NamespaceManifest(namespace)+text)
	return err
}
