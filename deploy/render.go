package deploy

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/releaseutil"
)

// Names that the programs rely on.
const (
	Namespace  = "culvert-system"
	Release    = "culvert"
	DaemonSet  = "culvert-node"
	Deployment = "culvert-controller"
)

// MinKubernetes is the oldest Kubernetes that the chart fits, as "major.minor".
const MinKubernetes = "1.30"

// MinKernel is the oldest Linux with all that the agent needs: NAT in tables of family inet.
const MinKernel = "5.2"

// NamespaceLabels are put on the namespace when it is made: the agent needs capabilities and host paths that Pod Security's
// other levels refuse.
func NamespaceLabels() map[string]string {
	return map[string]string{
		"pod-security.kubernetes.io/enforce": "privileged",
		"pod-security.kubernetes.io/audit":   "privileged",
		"pod-security.kubernetes.io/warn":    "privileged",
	}
}

// NamespaceManifest returns the manifest of a namespace with those labels.
func NamespaceManifest(namespace string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: %s\n  labels:\n", namespace)
	labels := NamespaceLabels()
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		fmt.Fprintf(&b, "    %s: %s\n", key, labels[key])
	}
	return b.String()
}

// ValueFaults says what is wrong with values that the chart's schema or templates refuse, by the error that Helm makes of
// it. Of any other error it is "".
func ValueFaults(err error) string {
	if _, text, failed := strings.Cut(err.Error(), "execution error at ("); failed {
		_, text, _ = strings.Cut(text, "): ")
		return text
	}
	_, text, _ := strings.Cut(err.Error(), "don't meet the specifications of the schema")
	var faults []string
	for line := range strings.Lines(text) {
		line, fault := strings.CutPrefix(strings.TrimSpace(line), "- at '")
		pointer, what, found := strings.Cut(line, "': ")
		if !fault || !found {
			continue
		}
		at := strings.ReplaceAll(strings.TrimPrefix(pointer, "/"), "/", ".")
		names, unknown := strings.CutPrefix(what, "additional properties ")
		if strings.HasSuffix(what, ", want string") {
			what += " (quote it, or use --set-string)"
		}
		if !unknown {
			faults = append(faults, fmt.Sprintf("%s: %s", at, what))
			continue
		}
		for name := range strings.SplitSeq(strings.TrimSuffix(names, " not allowed"), ", ") {
			faults = append(faults, strings.TrimPrefix(at+"."+strings.Trim(name, "'"), ".")+": there is no such value")
		}
	}
	slices.Sort(faults) // those of one place come in any order
	return strings.Join(faults, "; ")
}

// Render returns the manifests that the chart makes of the values in a namespace, without a cluster, in the order in which
// they are to be applied. Values that the schema refuses are an error.
func Render(c *chart.Chart, namespace string, values map[string]any) (string, error) {
	capabilities := chartutil.DefaultCapabilities.Copy()
	capabilities.KubeVersion = chartutil.KubeVersion{Version: "v" + MinKubernetes + ".0", Major: "1", Minor: "30"}
	options := chartutil.ReleaseOptions{Name: Release, Namespace: namespace, Revision: 1, IsInstall: true}
	all, err := chartutil.ToRenderValues(c, values, options, capabilities)
	if err != nil {
		if faults := ValueFaults(err); faults != "" {
			return "", fmt.Errorf("read values: %s", faults)
		}
		return "", fmt.Errorf("read values: %w", err)
	}
	files, err := engine.Render(c, all)
	if err != nil {
		if faults := ValueFaults(err); faults != "" {
			return "", fmt.Errorf("read values: %s", faults)
		}
		return "", fmt.Errorf("render chart: %w", err)
	}
	for name := range files {
		if strings.HasSuffix(name, "NOTES.txt") {
			delete(files, name)
		}
	}
	_, manifests, err := releaseutil.SortManifests(files, nil, releaseutil.InstallOrder)
	if err != nil {
		return "", fmt.Errorf("sort manifests: %w", err)
	}
	var b strings.Builder
	for _, m := range manifests {
		fmt.Fprintf(&b, "---\n# Source: %s\n%s\n", m.Name, strings.TrimSpace(m.Content))
	}
	return b.String(), nil
}
