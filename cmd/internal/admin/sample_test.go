package admin_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/cmd/internal/admin"
)

// TestHealthListener serves samples and the state of a program on one port.
func TestHealthListener(t *testing.T) {
	l := listen(t, "tcp", "127.0.0.1:0")
	h := admin.NewHistogram(1, 10)
	for _, v := range []float64{0.5, 1, 5, 50} {
		h.Observe(v)
	}
	var readiness admin.Readiness
	readiness.Block("cluster")
	url := "http://" + l.Addr().String()
	serve(t, admin.Config{HealthListener: l, Readiness: &readiness, Gatherer: admin.Samples(func(emit func(admin.Sample)) {
		emit(admin.Sample{Name: "pushes_total", Help: "Pushes.", Counter: true, Labels: []admin.Label{{Name: "type", Value: "wds"}}, Value: 3})
		emit(admin.Sample{Name: "clients", Help: "Clients.", Value: 2})
		emit(admin.Sample{Name: "seconds", Help: "Time.", Histogram: h})
	})})
	get := func(path string) (int, string) {
		t.Helper()
		r, err := http.Get(url + path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return r.StatusCode, string(body)
	}
	_, metrics := get("/metrics")
	for _, want := range []string{
		"# TYPE pushes_total counter\npushes_total{type=\"wds\"} 3\n", "# TYPE clients gauge\nclients 2\n",
		"seconds_bucket{le=\"1\"} 2\n", "seconds_bucket{le=\"10\"} 3\n", "seconds_bucket{le=\"+Inf\"} 4\n", "seconds_sum 56.5\n", "go_goroutines",
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("metrics lack %q", want)
		}
	}
	if code, body := get("/healthz"); code != http.StatusOK || body != "ok\n" {
		t.Errorf("healthz answers %d %q", code, body)
	}
	if code, body := get("/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "cluster") {
		t.Errorf("readyz answers %d %q before it is ready", code, body)
	}
	readiness.Clear("cluster")
	if code, _ := get("/readyz"); code != http.StatusOK {
		t.Errorf("readyz answers %d when it is ready", code)
	}
}
