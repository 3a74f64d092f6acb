package access_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/culvert-mesh/culvert/cmd/internal/access"
)

type getter struct {
	config *rest.Config
	err    error
}

func (g getter) ToRESTConfig() (*rest.Config, error) { return g.config, g.err }

func TestNoKubeconfig(t *testing.T) {
	_, err := access.Connect(getter{err: clientcmd.NewEmptyConfigError("nothing")})
	if err == nil || !strings.Contains(err.Error(), "no kubeconfig") {
		t.Errorf("got %v", err)
	}
}

func TestNotAKubeconfig(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(file, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, cause := clientcmd.BuildConfigFromFlags("", file)
	_, err := access.Connect(getter{err: cause})
	if err == nil || !strings.HasSuffix(err.Error(), file+`": it is not a kubeconfig`) {
		t.Errorf("got %v", err)
	}
}

func TestNobodyAnswers(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := "http://" + l.Addr().String()
	l.Close()
	a, err := access.Connect(getter{config: &rest.Config{Host: address}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = a.Version(t.Context(), "1.30")
	if err == nil || !strings.Contains(err.Error(), "no cluster answers at "+address) {
		t.Errorf("got %v", err)
	}
}

func TestVersion(t *testing.T) {
	tests := []struct{ name, server, want string }{
		{"old", "v1.29.14-gke.100", "too old"},
		{"least", "v1.30.0", ""},
		{"vendor", "v1.31.2+k3s1", ""},
		{"new", "v1.40.0-alpha.1", ""},
		{"nonsense", "one", "read the server's version"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				_, _ = w.Write([]byte(`{"gitVersion":"` + tt.server + `"}`))
			}))
			defer server.Close()
			a, err := access.Connect(getter{config: &rest.Config{Host: server.URL}})
			if err != nil {
				t.Fatal(err)
			}
			_, err = a.Version(t.Context(), "1.30")
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("got %v", err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestExplain(t *testing.T) {
	a := &access.Access{Server: "https://here"}
	tests := []struct {
		name string
		err  error
		want string
	}{
		{"unauthorized", apierrors.NewUnauthorized("no"), "does not accept your credentials"},
		{"forbidden", apierrors.NewForbidden(schema.GroupResource{Resource: "pods"}, "x", errors.New("rule")), "no permission"},
		{"forbidden-below", fmt.Errorf("query: %w", apierrors.NewForbidden(schema.GroupResource{Resource: "pods"}, "x", errors.New("rule"))), `no permission: pods "x" is forbidden: rule`},
		{"certificate", &url.Error{Op: "Get", URL: "https://here", Err: errors.New("tls: failed to verify certificate: x509: unknown authority")}, "not the one of the kubeconfig"},
		{"refused", &url.Error{Op: "Get", URL: "https://here/version", Err: errors.New("connection refused")}, "no cluster answers at https://here: connection refused"},
		{"canceled", context.Canceled, "context canceled"},
		{"other", errors.New("other"), "other"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := a.Explain(tt.err)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if !errors.Is(err, tt.err) {
				t.Errorf("%v does not wrap its cause", err)
			}
		})
	}
	if a.Explain(nil) != nil {
		t.Error("nothing is explained")
	}
}
