package apiserver_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/cmd/internal/apiserver"
)

// kubeconfig returns a file that names a server.
func kubeconfig(t *testing.T, server string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"a",
"clusters":[{"name":"c","cluster":{"server":%q}}],"contexts":[{"name":"a","context":{"cluster":"c"}}]}`, server)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestConfig(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	file := kubeconfig(t, "https://192.0.2.1:6443")
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, []byte(`{"apiVersion":"v1","kind":"Config","current-context":"a","contexts":[{"name":"a","context":{"cluster":"c"}}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, kubeconfig, host, err string }{
		{"kubeconfig", file, "https://192.0.2.1:6443", ""},
		{"no_such_file", file + "x", "", "find the API server: stat " + file + "x"},
		{"no_cluster", empty, "", "find the API server: " + empty + " names no cluster"},
		{"no_pod", "", "", "find the API server: this is not a pod: give --kubeconfig"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg, err := apiserver.Config(tt.kubeconfig)
			if tt.err != "" {
				if err == nil || !strings.HasPrefix(err.Error(), tt.err) {
					t.Errorf("got %v, want %s", err, tt.err)
				}
				return
			}
			if err != nil || cfg.Host != tt.host {
				t.Errorf("got %v, %v", cfg, err)
			}
		})
	}
}
