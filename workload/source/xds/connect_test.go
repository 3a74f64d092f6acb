package xds_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/policy"
	"github.com/culvert-mesh/culvert/workload/source/xds"
)

// refused waits until an attempt has failed with the text, and checks that the
// server never saw a stream.
func refused(t *testing.T, s *adsServer, r *running, text string) {
	t.Helper()
	r.eventually(t, "attempt fails", func() bool { return strings.Contains(r.log.String(), text) })
	select {
	case <-s.streams:
		t.Error("the server saw a stream")
	default:
	}
}

func (r *running) eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for range 10_000 {
		if condition() {
			return
		}
		shortSleep(t.Context())
	}
	t.Fatalf("%s: not in time; log:\n%s", what, r.log)
}

func TestConnectVerifiesServer(t *testing.T) {
	_, other := certificate(t, nil)
	t.Run("unknown-authority", func(t *testing.T) {
		s := startServer(t)
		refused(t, s, start(t, s, xds.Config{RootCA: other}), "unknown authority")
	})
	t.Run("other-name", func(t *testing.T) {
		s := startServer(t, "istiod.example")
		refused(t, s, start(t, s, xds.Config{}), "cannot validate certificate for 127.0.0.1")
	})
	t.Run("neither-name", func(t *testing.T) {
		s := startServer(t, "istiod.example")
		refused(t, s, start(t, s, xds.Config{AltHostname: "other.example"}), "not other.example")
	})
	t.Run("alternative-name-with-unknown-authority", func(t *testing.T) {
		s := startServer(t, "istiod.example")
		refused(t, s, start(t, s, xds.Config{AltHostname: "istiod.example", RootCA: other}), "unknown authority")
	})
	t.Run("alternative-name", func(t *testing.T) {
		s := startServer(t, "istiod.example")
		start(t, s, xds.Config{AltHostname: "istiod.example"})
		s.subscribed(t)
	})
	t.Run("own-name-although-there-is-an-alternative", func(t *testing.T) {
		s := startServer(t)
		start(t, s, xds.Config{AltHostname: "istiod.example"})
		s.subscribed(t)
	})
}

// TestConnectReadsRootsAgain: a root file that is replaced counts at the next
// attempt.
func TestConnectReadsRootsAgain(t *testing.T) {
	s := startServer(t)
	_, other := certificate(t, nil)
	file := filepath.Join(t.TempDir(), "roots.pem")
	if err := os.WriteFile(file, []byte(other), 0o600); err != nil {
		t.Fatal(err)
	}
	r := start(t, s, xds.Config{RootCA: file})
	refused(t, s, r, "unknown authority")
	if err := os.WriteFile(file, []byte(s.roots), 0o600); err != nil {
		t.Fatal(err)
	}
	s.subscribed(t)
}

func TestConnectNeedsToken(t *testing.T) {
	s := startServer(t)
	file := filepath.Join(t.TempDir(), "token")
	r := start(t, s, xds.Config{TokenFile: file})
	refused(t, s, r, "read token: ")
	if err := os.WriteFile(file, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused(t, s, r, "is empty")
}

func TestNewRefusesBadConfig(t *testing.T) {
	_, roots := certificate(t, nil)
	good := xds.Config{Address: "https://istiod:15012/", RootCA: roots, Store: workload.New(), Policies: policy.New()}
	tests := []struct {
		name   string
		change func(*xds.Config)
		want   string
	}{
		{"good", func(*xds.Config) {}, ""},
		{"system-roots", func(c *xds.Config) { c.RootCA = "SYSTEM" }, ""},
		{"everything-missing", func(c *xds.Config) { *c = xds.Config{} },
			"configure xds: address \"\": missing port in address\nno root certificates given\nno store given"},
		{"no-port", func(c *xds.Config) { c.Address = "istiod" }, `configure xds: address "istiod": address istiod: missing port in address`},
		{"missing-file", func(c *xds.Config) { c.RootCA = "/nonexistent/roots.pem" },
			"configure xds: read root certificates: open /nonexistent/roots.pem: no such file or directory"},
		{"no-certificate", func(c *xds.Config) { c.RootCA = "-----BEGIN NOTHING-----" },
			"configure xds: read root certificates: no certificate found"},
		{"metadata-that-is-no-json", func(c *xds.Config) { c.Node.Metadata = map[string]any{"a": func() {}} },
			"configure xds: node metadata: json: unsupported type: func()"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := good
			tt.change(&cfg)
			_, err := xds.New(cfg)
			if got := errorText(err); got != tt.want {
				t.Errorf("error is %q, want %q", got, tt.want)
			}
		})
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
