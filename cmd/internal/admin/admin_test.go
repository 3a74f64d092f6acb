package admin_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/culvert-mesh/culvert/cmd/internal/admin"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func listen(t *testing.T, network, addr string) net.Listener {
	t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// serve runs a server until the end of the test.
func serve(t *testing.T, cfg admin.Config) {
	t.Helper()
	s, err := admin.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

type answer struct {
	Status int
	Type   string
	Body   string
}

func ask(t *testing.T, method, url string, change ...func(*http.Request)) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range change {
		c(req)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header.Get("Content-Type"), string(body)}
}

func TestMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	counter := prometheus.NewCounter(prometheus.CounterOpts{Name: "istio_tcp_connections_opened_total", Help: "h"})
	registry.MustRegister(counter)
	counter.Add(3)
	l := listen(t, "tcp", "127.0.0.1:0")
	serve(t, admin.Config{MetricsListener: l, Gatherer: registry})
	for _, path := range []string{"/metrics", "/stats/prometheus"} {
		got := ask(t, http.MethodGet, "http://"+l.Addr().String()+path)
		if got.Status != 200 || !strings.Contains(got.Body, "istio_tcp_connections_opened_total 3\n") || !strings.HasPrefix(got.Type, "text/plain") {
			t.Errorf("%s: %+v", path, got)
		}
	}
	open := ask(t, http.MethodGet, "http://"+l.Addr().String()+"/metrics", func(r *http.Request) { r.Header.Set("Accept", "application/openmetrics-text") })
	if !strings.HasPrefix(open.Type, "application/openmetrics-text") || !strings.HasSuffix(open.Body, "# EOF\n") {
		t.Errorf("OpenMetrics: %+v", open)
	}
	if got := ask(t, http.MethodGet, "http://"+l.Addr().String()+"/config_dump"); got.Status != 404 {
		t.Errorf("admin path on the metrics port: %+v", got)
	}
}

func TestReadiness(t *testing.T) {
	var ready admin.Readiness
	l := listen(t, "tcp", "127.0.0.1:0")
	serve(t, admin.Config{ReadyListener: l, Readiness: &ready})
	url := "http://" + l.Addr().String() + "/healthz/ready"
	const plain = "text/plain; charset=utf-8"
	want := func(want answer) {
		t.Helper()
		if got := ask(t, http.MethodGet, url); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	want(answer{200, plain, "ready\n"})
	ready.Block("state manager")
	ready.Block("proxy")
	want(answer{500, plain, "not ready, pending: proxy, state manager\n"})
	ready.Clear("proxy")
	ready.Clear("state manager")
	want(answer{200, plain, "ready\n"})
	ready.Block("workload proxy manager") // it can be lost again
	want(answer{500, plain, "not ready, pending: workload proxy manager\n"})
	if got := ask(t, http.MethodPost, url); got.Status != 405 {
		t.Errorf("POST: %+v", got)
	}
	if got := ask(t, http.MethodGet, strings.TrimSuffix(url, "ready")); got.Status != 404 {
		t.Errorf("other path: %+v", got)
	}
}

func TestConfigDump(t *testing.T) {
	l := listen(t, "tcp", "127.0.0.1:0")
	var fail error
	serve(t, admin.Config{AdminListener: l, Dump: map[string]func() (any, error){
		"workloads": func() (any, error) { return []string{"w"}, nil },
		"config":    func() (any, error) { return map[string]int{"loops": 2}, fail },
	}})
	url := "http://" + l.Addr().String() + "/config_dump"
	got := ask(t, http.MethodGet, url)
	want := "{\n  \"config\": {\n    \"loops\": 2\n  },\n  \"workloads\": [\n    \"w\"\n  ]\n}\n"
	if got != (answer{200, "application/json", want}) || !json.Valid([]byte(got.Body)) {
		t.Errorf("got %+v", got)
	}
	fail = errors.New("no state")
	if got := ask(t, http.MethodGet, url); got.Status != 500 || got.Body != "dump config: no state\n" {
		t.Errorf("failing part: %+v", got)
	}
}

func TestLogging(t *testing.T) {
	levels, err := admin.NewLevels("info,dns=warn")
	if err != nil {
		t.Fatal(err)
	}
	l := listen(t, "tcp", "127.0.0.1:0")
	serve(t, admin.Config{AdminListener: l, Levels: levels})
	tests := []struct {
		name, method, query string
		status              int
		body                string
	}{
		{"list", "POST", "", 200, "current log level is dns=warn,info\n"},
		{"level", "POST", "?level=debug", 200, "current log level is dns=warn,debug\n"},
		{"scope", "POST", "?level=proxy=trace,dns=off", 200, "current log level is dns=off,proxy=trace,debug\n"},
		{"scope_with_colon", "POST", "?level=proxy:error", 200, "current log level is dns=off,proxy=error,debug\n"},
		{"invalid", "POST", "?level=loud", 400, "Invalid level provided: loud: level loud is invalid: want error, warn, info, debug, trace or off, or scope=level\n"},
		{"invalid_scope", "POST", "?level=proxy", 400, "Invalid level provided: proxy: level proxy is invalid: want error, warn, info, debug, trace or off, or scope=level\n"},
		{"half_invalid_changes_nothing", "POST", "?level=error,proxy=loud", 400, "Invalid level provided: "},
		{"unchanged", "POST", "", 200, "current log level is dns=off,proxy=error,debug\n"},
		{"reset_and_level", "POST", "?reset&level=proxy=debug", 200, "current log level is dns=warn,proxy=debug,info\n"},
		{"reset", "POST", "?reset", 200, "current log level is dns=warn,info\n"},
		{"get", "GET", "", 405, "Invalid HTTP method\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := ask(t, tt.method, "http://"+l.Addr().String()+"/logging"+tt.query)
			if got.Status != tt.status || !strings.HasPrefix(got.Body, tt.body) {
				t.Errorf("got %+v, want %d %q", got, tt.status, tt.body)
			}
		})
	}
}

func TestLevelsFilter(t *testing.T) {
	levels, err := admin.NewLevels("warn,dns=debug,dns/server=error")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	logger := slog.New(levels.Handler(slog.NewTextHandler(&out, &slog.HandlerOptions{
		Level: admin.LevelTrace,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	})))
	say := func(scope string) {
		l := logger.With(admin.ScopeKey, scope)
		l.Debug("d")
		l.Warn("w")
		l.Error("e")
	}
	say("proxy")
	say("dns")
	say("dns/server")
	say("dns/other")
	logger.With("scope", "dns").WithGroup("g").With("scope", "proxy").Debug("grouped")
	logger.Info("general")
	part, other := levels.Scope("dns/server/tcp"), levels.Scope("proxy")
	if part.Level() != slog.LevelError || other.Level() != slog.LevelWarn {
		t.Errorf("levels are %s and %s", part.Level(), other.Level())
	}
	if err := levels.Change(false, "off"); err != nil {
		t.Fatal(err)
	}
	if part.Level() != slog.LevelError || other.Level() != admin.LevelOff {
		t.Errorf("after the change the levels are %s and %s", part.Level(), other.Level())
	}
	say("proxy")
	want := `level=WARN msg=w scope=proxy
level=ERROR msg=e scope=proxy
level=DEBUG msg=d scope=dns
level=WARN msg=w scope=dns
level=ERROR msg=e scope=dns
level=ERROR msg=e scope=dns/server
level=DEBUG msg=d scope=dns/other
level=WARN msg=w scope=dns/other
level=ERROR msg=e scope=dns/other
level=DEBUG msg=grouped scope=dns g.scope=proxy
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
	if _, err := admin.NewLevels("noisy"); err == nil {
		t.Error("an unknown level was taken")
	}
}

func TestQuit(t *testing.T) {
	l := listen(t, "tcp", "127.0.0.1:0")
	asked := make(chan struct{}, 1)
	serve(t, admin.Config{AdminListener: l, QuitTimeout: 20 * time.Millisecond, Quit: func(ctx context.Context) {
		asked <- struct{}{}
		<-ctx.Done() // connections that do not end
	}})
	url := "http://" + l.Addr().String() + "/quitquitquit"
	if got := ask(t, http.MethodGet, url); got.Status != 405 || len(asked) != 0 {
		t.Errorf("GET: %+v", got)
	}
	if got := ask(t, http.MethodPost, url); got.Status != 200 || got.Body != "shutdown now\n" {
		t.Errorf("POST: %+v", got)
	}
	<-asked
}

func TestPprof(t *testing.T) {
	l := listen(t, "tcp", "[::1]:0")
	serve(t, admin.Config{AdminListener: l})
	base := "http://" + l.Addr().String()
	for path, status := range map[string]int{
		"/debug/pprof/":                         200,
		"/debug/pprof/heap":                     200,
		"/debug/pprof/profile?seconds=0":        400,
		"/debug/pprof/profile?seconds=301":      400,
		"/debug/pprof/profile?frequency=x":      400,
		"/debug/pprof/goroutine?debug=1":        200,
		"/":                                     200,
		"/logging":                              404, // not configured
		"/quitquitquit":                         404,
		"/metrics":                              404, // other port
		"/debug/pprof/cmdline":                  200,
		"/debug/pprof/symbol":                   200,
		"/debug/pprof/profile?seconds=1&x=none": 200,
	} {
		if got := ask(t, http.MethodGet, base+path); got.Status != status {
			t.Errorf("%s: %d, want %d", path, got.Status, status)
		}
	}
}

func TestAdminServesThisMachineOnly(t *testing.T) {
	for _, addr := range []string{"0.0.0.0:0", "[::]:0"} {
		if _, err := admin.New(admin.Config{AdminListener: listen(t, "tcp", addr)}); err == nil || !strings.Contains(err.Error(), "only a loopback address") {
			t.Errorf("%s: got %v", addr, err)
		}
	}
	if _, err := admin.New(admin.Config{AdminListener: listen(t, "unix", t.TempDir()+"/admin.sock")}); err != nil {
		t.Errorf("Unix socket: %v", err)
	}
	l := listen(t, "tcp", "127.0.0.1:0")
	serve(t, admin.Config{AdminListener: l})
	url := "http://" + l.Addr().String() + "/config_dump"
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for host, status := range map[string]int{"localhost:" + port: 200, "[::1]:" + port: 200, "localhost": 200, "[::1]": 200, "evil.example:" + port: 403, "10.0.0.1": 403} {
		if got := ask(t, http.MethodGet, url, func(r *http.Request) { r.Host = host }); got.Status != status {
			t.Errorf("host %s: %d, want %d", host, got.Status, status)
		}
	}
	if got := ask(t, http.MethodPost, url, func(r *http.Request) { r.Header.Set("Origin", "http://evil.example") }); got.Status != 403 {
		t.Errorf("foreign origin: %d, want 403", got.Status)
	}
}

func TestNewRefusesIncompleteConfig(t *testing.T) {
	if _, err := admin.New(admin.Config{MetricsListener: listen(t, "tcp", "127.0.0.1:0")}); err == nil {
		t.Error("metrics without gatherer were taken")
	}
	if _, err := admin.New(admin.Config{ReadyListener: listen(t, "tcp", "127.0.0.1:0")}); err == nil {
		t.Error("readiness without state was taken")
	}
}

func TestRunReportsLostListener(t *testing.T) {
	l := listen(t, "tcp", "127.0.0.1:0")
	s, err := admin.New(admin.Config{ReadyListener: l, Readiness: new(admin.Readiness)})
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := s.Run(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v, want net.ErrClosed", err)
	}
}

// TestSlowHeaders shows that a client that dribbles is cut off.
func TestSlowHeaders(t *testing.T) {
	if os.Getenv("CI") == "" && testing.Short() {
		t.Skip("takes two seconds")
	}
	l := listen(t, "tcp", "127.0.0.1:0")
	serve(t, admin.Config{AdminListener: l})
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "GET /config_dump HTTP/1.1\r\n")
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.ReadAll(c); err != nil {
		t.Errorf("the connection was not cut: %v", err)
	}
}
