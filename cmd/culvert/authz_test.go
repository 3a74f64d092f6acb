package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/cmd/internal/authz"
)

var update = flag.Bool("update", false, "write the golden files anew")

const (
	bookstore = "../../deploy/samples/bookstore/bookstore.yaml"
	policies  = "testdata/authz/policies.yaml"
)

// What commands say about the bookstore sample is written down as a person sees it. The exit status is in the first line.
func TestAuthzGolden(t *testing.T) {
	files := []string{"-n", "books", "-f", bookstore, "-f", policies}
	for _, tt := range []struct {
		name   string
		args   []string
		status int
	}{
		{"check-ratings", []string{"check", "app=ratings"}, 0},
		{"check-productpage", []string{"check", "deployment/productpage-v1"}, 0},
		{"check-reviews", []string{"check", "service/reviews"}, 0},
		{"allowed", []string{"check", "--from=deployment/reviews-v2", "--to=service/ratings", "--port=9080"}, 0},
		{"denied", []string{"check", "--from=deployment/productpage-v1", "--to=service/ratings", "--port=9080"}, 1},
		{"denied-plaintext", []string{"check", "--from-ip=10.1.2.3", "--to=service/ratings", "--port=9080"}, 1},
		{"allowed-plaintext", []string{"check", "--from-ip=10.1.2.3", "--to=service/productpage", "--port=9080"}, 0},
		{"json", []string{"check", "--from-principal=spiffe://cluster.local/ns/x/sa/y", "-l", "app=ratings", "--port=9080", "-o", "json"}, 1},
		{"lint", []string{"lint"}, 1},
		{"suggest", []string{"suggest", "-f", "testdata/authz/flows.json"}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, err := culvert(t, append(append([]string{"authz"}, tt.args...), files...)...)
			status := 0
			if err != nil {
				if status = exitStatus(err); err.Error() != "" {
					t.Fatal(err)
				}
			}
			if status != tt.status {
				t.Errorf("exit status %d, want %d", status, tt.status)
			}
			golden := filepath.Join("testdata", "authz", tt.name+".golden")
			if *update {
				if err := os.WriteFile(golden, []byte(out), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if out != string(want) {
				t.Errorf("it printed:\n%s\nwant:\n%s", out, want)
			}
		})
	}
}

// What was suggested, applied, lets exactly what was seen pass.
func TestAuthzSuggestionHolds(t *testing.T) {
	bare := filepath.Join(t.TempDir(), "namespace.yaml")
	if err := os.WriteFile(bare, []byte("apiVersion: v1\nkind: Namespace\nmetadata: {name: books, labels: {istio.io/dataplane-mode: ambient}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, _ := culvert(t, "authz", "suggest", "-n", "books", "-f", bookstore, "-f", bare, "-f", "testdata/authz/flows.json")
	suggested := filepath.Join(t.TempDir(), "suggested.yaml")
	if err := os.WriteFile(suggested, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	check := func(from, to, port string) int {
		t.Helper()
		_, err := culvert(t, "authz", "check", "-n", "books", "-f", bookstore, "-f", bare, "-f", suggested, from, "--to="+to, "--port="+port)
		if err == nil {
			return 0
		}
		return exitStatus(err)
	}
	for _, tt := range []struct {
		from, to, port string
		want           int
	}{
		{"--from=deployment/productpage-v1", "service/reviews", "9080", 0},
		{"--from=deployment/reviews-v3", "service/ratings", "9080", 0},
		{"--from-principal=cluster.local/ns/edge/sa/gateway", "service/productpage", "9080", 0},
		{"--from=deployment/productpage-v1", "service/ratings", "9080", 1},
		{"--from=deployment/reviews-v1", "app=ratings", "9081", 1},
		{"--from=deployment/ratings-v1", "service/details", "9080", 1},
		{"--from-ip=10.9.9.9", "service/productpage", "9080", 1},
	} {
		if got := check(tt.from, tt.to, tt.port); got != tt.want {
			t.Errorf("%s to %s %s: exit status %d, want %d", tt.from, tt.to, tt.port, got, tt.want)
		}
	}
	if text, err := culvert(t, "authz", "lint", "-n", "books", "-f", bookstore, "-f", bare, "-f", suggested); err != nil && !strings.Contains(text, "ns/edge") && !strings.Contains(text, "namespace edge") {
		t.Errorf("lint of what was suggested: %v\n%s", err, text)
	}
}

// Whatever an agent says, only policies are outside of the comments.
func TestAuthzSuggestionIsNothingElse(t *testing.T) {
	flows := filepath.Join(t.TempDir(), "flows.json")
	if err := os.WriteFile(flows, []byte(`{"flows": [], "missing": ["node a\n---\nkind: Role"]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := culvert(t, "authz", "suggest", "-f", bookstore, "-f", flows)
	if exitStatus(err) != 1 || !strings.Contains(out, "# not known: node a --- kind: Role\n") {
		t.Errorf("exits with %v and prints\n%s", err, out)
	}
	out, err = culvert(t, "authz", "suggest", "-f", bookstore, "-f", flows, "-o", "json")
	want := `{"policies":[],"observed":0,"kept":0,"refused":[],"governed":[],"open":[],"dropped":0,"missing":["node a\n---\nkind: Role"]}`
	var got bytes.Buffer
	if json.Compact(&got, []byte(out)) != nil || got.String() != want {
		t.Errorf("as JSON it exits with %v and prints\n%s", err, out)
	}
}

func TestAuthzRefuses(t *testing.T) {
	for _, tt := range []struct {
		name string
		args []string
		want string
	}{
		{"no-workload", []string{"check", "-f", bookstore}, "name a workload"},
		{"two-workloads", []string{"check", "-f", bookstore, "pod/a", "--to=pod/b"}, "name the workload once"},
		{"no-source", []string{"check", "-f", bookstore, "pod/a", "--port=1"}, "say also who connects"},
		{"no-port", []string{"check", "-f", bookstore, "pod/a", "--from-ip=1.1.1.1"}, "--port is missing"},
		{"two-sources", []string{"check", "-f", bookstore, "pod/a", "--from=pod/b", "--from-ip=1.1.1.1", "--port=1"}, "cannot be combined"},
		{"principal", []string{"check", "-f", bookstore, "pod/a", "--from-principal=web", "--port=1"}, "--from-principal"},
		{"address", []string{"check", "-f", bookstore, "pod/a", "--from-ip=10.0.0.300", "--port=1"}, "--from-ip"},
		{"reference", []string{"check", "-f", bookstore, "web"}, "names no workload"},
		{"unknown", []string{"check", "-f", bookstore, "deploy/reviews-v9"}, "did you mean reviews-v1?"},
		{"no-file", []string{"lint", "-f", "/does/not/exist"}, "/does/not/exist"},
		{"no-cluster", []string{"lint"}, "no kubeconfig"},
		{"flag", []string{"lint", "--whatever"}, "unknown flag"},
		{"argument", []string{"lint", "now"}, "takes flags alone"},
		{"output", []string{"suggest", "-o", "xml"}, "want yaml, json or flows"},
		{"flows-twice", []string{"suggest", "-f", "testdata/authz/flows.json", "--prometheus=http://x"}, "want one of them"},
		{"no-flows", []string{"suggest", "-f", bookstore}, "no kubeconfig"},
		{"trust-domain", []string{"lint", "-f", bookstore, "--trust-domain=a b"}, "trust domain"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := culvert(t, append([]string{"authz"}, tt.args...)...)
			if err == nil || !strings.Contains(err.Error(), tt.want) || exitStatus(err) != 2 {
				t.Errorf("got %v (status %d), want %q", err, exitStatus(err), tt.want)
			}
		})
	}
}

func TestAuthzLintOfOneNamespace(t *testing.T) {
	files := []string{"authz", "lint", "-n", "books", "-f", bookstore, "-f", policies}
	if out, err := culvert(t, append(files, "--only-namespace=books")...); status(err) != 1 || !strings.Contains(out, " books/") {
		t.Errorf("status %d: %s", status(err), out)
	}
	if out, err := culvert(t, append(files, "--only-namespace=other")...); status(err) != 0 || out != "nothing found\n" {
		t.Errorf("status %d: %s", status(err), out)
	}
}

func TestPrometheusFlows(t *testing.T) {
	labels := func(principal, to string) map[string]string {
		return map[string]string{
			"source_principal": principal, "source_workload": "web", "source_workload_namespace": "shop", "destination_workload": to, "destination_workload_namespace": "shop",
			"destination_service_name": "cart", "destination_service_namespace": "shop",
		}
	}
	sample := func(l map[string]string, n string) map[string]any {
		return map[string]any{"metric": l, "value": []any{float64(time.Now().Unix()), n}}
	}
	beyond := labels("", "") // what agents counted together at the limit of their series
	for name := range beyond {
		beyond[name] = "unknown"
	}
	beyond["source_workload"], beyond["destination_workload"] = "overflow", "overflow"
	const web = "spiffe://cluster.local/ns/shop/sa/web"
	answers := func(query string) []any {
		switch {
		case !strings.Contains(query, "[3600s]"):
			return nil
		case strings.Contains(query, "opened_total"):
			return []any{sample(labels(web, "cart"), "12"), sample(labels("unknown", "cart"), "3"), sample(labels(web, "refusing"), "5"), sample(labels(web, "unknown"), "5"), sample(labels("nonsense", "cart"), "1"), sample(beyond, "7")}
		default:
			return []any{sample(labels(web, "refusing"), "5")}
		}
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/prefix/api/v1/query" {
			http.NotFound(w, r)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"status": "success", "data": map[string]any{"resultType": "vector", "result": answers(r.FormValue("query"))}})
	}))
	defer server.Close()
	flows, err := prometheusFlows(t.Context(), server.URL+"/prefix", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range flows.Flows {
		got = append(got, fmt.Sprintf("%s x%d by %s", f.String(), f.Count, f.Destination.Service))
	}
	want := []string{"cluster.local/ns/shop/sa/web -> shop/cart x12 by cart", "shop/web (plaintext) -> shop/cart x3 by cart"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if flows.Dropped != 7 {
		t.Errorf("%d connections are missing, want 7", flows.Dropped)
	}
	for url, text := range map[string]string{server.URL: "not as Prometheus does", "ftp://x": "want http", "http://127.0.0.1:1": "refused"} {
		if _, err := prometheusFlows(t.Context(), url, time.Hour); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v, want %q", url, err, text)
		}
	}
	if !slices.IsSortedFunc(flows.Flows, func(a, b authz.Flow) int { return strings.Compare(a.Source.String(), b.Source.String()) }) {
		t.Error("flows are not in order")
	}
}
