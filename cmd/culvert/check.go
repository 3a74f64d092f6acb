package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"helm.sh/helm/v3/pkg/storage"
	"helm.sh/helm/v3/pkg/storage/driver"

	"github.com/culvert-mesh/culvert/cmd/internal/access"
	"github.com/culvert-mesh/culvert/cmd/internal/inspect"
	"github.com/culvert-mesh/culvert/deploy"
)

// errFound is the error when the findings have said why.
var errFound = withStatus{exitWrong, errors.New("something is wrong: see the lines that begin with error")}

func checkCommand() *cobra.Command {
	var machine, cluster, all bool
	var output string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Say what is missing or wrong, on this machine and in the cluster",
		Long: `Say what is missing or wrong: features of this machine's kernel (as root), and, where a kubeconfig names a cluster, its
version, its CNI, controller and agents and their permissions, what the agents found on their nodes (among it what the
exemption for the kubelet's probes leaves open), taints, and pods that are labelled for the mesh and not in it.

The exit status is 1 when something does not work, or could not be looked at.`,
		Args: noArguments,
	}
	kube := addKubeFlags(cmd)
	flags := cmd.Flags()
	flags.BoolVar(&machine, "machine", true, "look at this machine")
	flags.BoolVar(&cluster, "cluster", true, "look at the cluster, if a kubeconfig names one")
	flags.BoolVar(&all, "all", false, "show also what is as it should be on every single node")
	flags.StringVarP(&output, "output", "o", "table", "table or json")
	return withTrouble(cmd, func(cmd *cobra.Command, _ []string) error {
		if err := checkOutput(output, "table", "json"); err != nil {
			return err
		}
		var found []inspect.Finding
		if machine {
			found = append(found, inspect.Machine()...)
		}
		if cluster {
			found = append(found, checkCluster(cmd, kube)...)
		}
		if err := printFindings(cmd.OutOrStdout(), found, output, all); err != nil {
			return err
		}
		if inspect.Failed(found) {
			return errFound
		}
		return nil
	})
}

// checkCluster looks at the cluster; without a kubeconfig there is none, which is no fault.
func checkCluster(cmd *cobra.Command, kube kubeFlags) []inspect.Finding {
	if !kube.configured() {
		return []inspect.Finding{{Level: inspect.Note, About: "cluster", Text: "no kubeconfig: only this machine was looked at"}}
	}
	a, err := kube.connect()
	if err != nil {
		return []inspect.Finding{{Level: inspect.Wrong, About: "cluster", Text: inspect.Clean(err.Error())}}
	}
	return inspect.Cluster(cmd.Context(), a, inspect.NewAgents(a), kube.namespace(), releaseOf(a, kube.namespace()))
}

// releaseOf returns the manifests of the release that is installed in a namespace, or "" where it is not known.
func releaseOf(a *access.Access, namespace string) string {
	release, err := storage.Init(driver.NewSecrets(a.Kube.CoreV1().Secrets(namespace))).Deployed(deploy.Release)
	if err != nil {
		return "" // installed with kubectl, or Secrets are not for this user
	}
	return release.Manifest
}

// maxNamed is how many are named of those that something is true of, without --all.
const maxNamed = 5

// printFindings writes what was found. Without all, nodes that are as they should be are only counted, and nodes of which the
// same is true share a line.
func printFindings(out io.Writer, found []inspect.Finding, output string, all bool) error {
	if output == "json" {
		return writeJSON(out, found)
	}
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fine := 0
	if !all {
		found, fine = shorten(found)
	}
	for _, f := range found {
		names := f.Names
		if len(names) > maxNamed && !all {
			names = append(slices.Clone(names[:maxNamed]), "… (--all)")
		}
		if len(names) > 0 {
			f.Text += ": " + strings.Join(names, ", ")
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", f.Level, f.About, f.Text)
	}
	if fine > 0 {
		fmt.Fprintf(w, "%s\tnodes\t%d more things are as they should be (--all)\n", inspect.OK, fine)
	}
	return w.Flush()
}

// shorten leaves out, and counts, what is as it should be on single nodes, and puts what is true of several into one.
func shorten(found []inspect.Finding) (short []inspect.Finding, fine int) {
	type key struct {
		level inspect.Level
		text  string
	}
	at := map[key]int{}
	for _, f := range found {
		node, isNode := strings.CutPrefix(f.About, "node ")
		switch {
		case !isNode:
		case f.Level == inspect.OK:
			fine++
			continue
		default:
			k := key{f.Level, f.Text}
			if i, seen := at[k]; seen {
				short[i].Names = append(short[i].Names, node)
				continue
			}
			at[k], f.Names = len(short), []string{node}
		}
		short = append(short, f)
	}
	for _, i := range at {
		if n := len(short[i].Names); n > 1 {
			short[i].About = fmt.Sprintf("%d nodes", n)
		} else {
			short[i].Names = nil
		}
	}
	return short, fine
}
