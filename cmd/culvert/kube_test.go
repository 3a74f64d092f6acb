package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// A kubeconfig that leads nowhere is said to, instead of asking whoever listens on this machine.
func TestKubeconfigWithoutCluster(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	const context = "contexts: [{name: a, context: {cluster: c}}, {name: b, context: {cluster: d}}]\nclusters: [{name: d, cluster: {server: 'https://192.0.2.1'}}]\n"
	for _, tt := range []struct{ name, content, context, want string }{
		{"no_context", context, "", "find cluster: the kubeconfig has no current context: give --context"},
		{"no_cluster", context + "current-context: a\n", "", `find cluster: context a names cluster "c", which the kubeconfig does not have`},
		{"no_cluster_of_the_flag", context + "current-context: b\n", "a", `find cluster: context a names cluster "c"`},
		{"no_such_context", context, "e", `context "e" does not exist`},
		{"by_flag", context, "b", ""},
		{"current", context + "current-context: b\n", "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "config")
			if err := os.WriteFile(file, []byte("apiVersion: v1\nkind: Config\n"+tt.content), 0o600); err != nil {
				t.Fatal(err)
			}
			f := addKubeFlags(&cobra.Command{})
			*f.KubeConfig, *f.Context = file, tt.context
			_, err := f.connect()
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("got %v", err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
}
