package main_test

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/libcni"

	"github.com/culvert-mesh/culvert/redirect/cni"
	"github.com/culvert-mesh/culvert/redirect/handoff"
	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/netnstest"
)

const (
	uid   = "0b7c5c3e-8a1f-4b51-9d2e-6f0e1a2b3c4d"
	token = "the-token-of-the-agent"
)

// binDir has the plugin as `make build` makes it, and one that makes "the network".
var binDir string

func TestMain(m *testing.M) { os.Exit(withBinaries(m)) }

func withBinaries(m *testing.M) int {
	dir, err := os.MkdirTemp("", "cni")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	build := exec.Command("go", "build", "-o", dir, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build plugin: %v\n%s", err, out)
		return 1
	}
	network := "#!/bin/sh\nconf=$(cat)\ncase $CNI_COMMAND in ADD) cat \"$(dirname \"$0\")/result\";; esac\n"
	for name, text := range map[string]string{"network": network, "result": result} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil { //nolint:gosec // a program
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	binDir = dir
	return netnstest.Main(m)
}

const result = `{"interfaces":[{"name":"cni0"},{"name":"eth0","sandbox":"/run/netns/a"}],
	"ips":[{"version":"4","address":"10.1.0.7/24","gateway":"10.1.0.1","interface":1}],"dns":{"nameservers":["10.96.0.10"]}}`

// agent is the agent of a node.
type agent struct {
	handoff.Handler
	enrolled bool
	hang     bool

	mu  sync.Mutex
	err error
	got []string
}

// fail sets what is answered from now on.
func (a *agent) fail(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.err = err
}

func (a *agent) answer(ctx context.Context, op string, pod handoff.CNIPod, ns *netns.NS) (bool, error) {
	line := fmt.Sprintf("%s %s %s %v", op, pod, pod.UID, pod.Addresses)
	if ns != nil {
		line += " " + ns.String()
		_ = ns.Close()
	}
	a.mu.Lock()
	a.got = append(a.got, line)
	err := a.err
	a.mu.Unlock()
	if a.hang {
		<-ctx.Done()
	}
	return a.enrolled, err
}

func (a *agent) CNIAdd(ctx context.Context, pod handoff.CNIPod, ns *netns.NS) (bool, error) {
	return a.answer(ctx, "add", pod, ns)
}

func (a *agent) CNICheck(ctx context.Context, pod handoff.CNIPod, ns *netns.NS) (bool, error) {
	return a.answer(ctx, "check", pod, ns)
}

func (a *agent) CNIDel(ctx context.Context, pod handoff.CNIPod, ns *netns.NS) error {
	_, err := a.answer(ctx, "del", pod, ns)
	return err
}

func (a *agent) CNIStatus(ctx context.Context) error {
	_, err := a.answer(ctx, "status", handoff.CNIPod{}, nil)
	return err
}

func (a *agent) calls() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.got
}

// lab is a node with a runtime.
type lab struct {
	t    *testing.T
	dir  string
	conf cni.Config
	more string // of the plugin's configuration, for what cni.Config cannot say
	ns   *netns.NS
	args [][2]string
	vers string
}

func newLab(t *testing.T) *lab {
	t.Helper()
	netnstest.Require(t)
	dir, err := os.MkdirTemp("", "c") // short: a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return &lab{
		t: t, dir: dir, ns: netnstest.New(t), vers: "1.1.0",
		conf: cni.Config{
			AgentSocket: dir + "/agent/s", APIFile: dir + "/cni/api.json", LogFile: dir + "/cni/log",
			AgentTimeout: cni.Duration(30e9), APITimeout: cni.Duration(30e9),
		},
		args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "shop"}, {"K8S_POD_NAME", "cart-0"}, {"K8S_POD_UID", uid}},
	}
}

// serve runs the agent until the end of the test.
func (l *lab) serve(a *agent) *agent {
	l.t.Helper()
	s, err := handoff.Listen(handoff.Config{Path: l.conf.AgentSocket, Handler: a})
	if err != nil {
		l.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	l.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			l.t.Error(err)
		}
	})
	return a
}

// pod names the pod that is started.
func (l *lab) pod(namespace, name string) { l.args[1][1], l.args[2][1] = namespace, name }

// api serves objects by path and writes the file by which the plugin finds them.
func (l *lab) api(objects map[string]string) {
	l.t.Helper()
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+token {
			http.Error(w, "no", http.StatusUnauthorized)
			return
		}
		switch text := objects[r.URL.Path]; text {
		case "":
			http.NotFound(w, r)
		case "403":
			http.Error(w, "no", http.StatusForbidden)
		case "302":
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
		case "hang":
			<-r.Context().Done()
		default:
			_, _ = w.Write([]byte(text))
		}
	}))
	l.t.Cleanup(server.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	l.apiFile(map[string]string{"server": server.URL, "caPEM": string(ca), "token": token})
}

func (l *lab) apiFile(content any) {
	l.t.Helper()
	text, err := json.Marshal(content)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(l.conf.APIFile), 0o700)
	}
	if err == nil {
		err = os.WriteFile(l.conf.APIFile, text, 0o600)
	}
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) list() *libcni.NetworkConfigList {
	l.t.Helper()
	entry, err := l.conf.JSON()
	if err != nil {
		l.t.Fatal(err)
	}
	list, err := libcni.NetworkConfFromBytes(fmt.Appendf(nil,
		`{"cniVersion":%q,"name":"net","plugins":[{"type":"network"},%s%s]}`, l.vers, strings.TrimSuffix(string(entry), "}"), l.more+"}"))
	if err != nil {
		l.t.Fatal(err)
	}
	return list
}

func (l *lab) runtime() (*libcni.CNIConfig, *libcni.RuntimeConf) {
	var path string
	_ = l.ns.Control(func(fd int) error { path = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd); return nil })
	return libcni.NewCNIConfigWithCacheDir([]string{binDir}, filepath.Join(l.dir, "cache"), nil),
		&libcni.RuntimeConf{ContainerID: "4f1d0c2b", NetNS: path, IfName: "eth0", Args: l.args}
}

func (l *lab) add() error {
	c, rt := l.runtime()
	_, err := c.AddNetworkList(context.Background(), l.list(), rt)
	return err
}

func (l *lab) wantAdd(part string) {
	l.t.Helper()
	wantError(l.t, l.add(), part)
}

// wantError checks that err has the part in it; an empty part means no error. No
// error may show the token.
func wantError(t *testing.T, err error, part string) {
	t.Helper()
	switch {
	case part == "" && err != nil:
		t.Errorf("failed: %v", err)
	case part != "" && err == nil:
		t.Errorf("passed, want an error with %q", part)
	case part != "" && !strings.Contains(err.Error(), part):
		t.Errorf("error %q, want %q in it", err, part)
	case err != nil && strings.Contains(err.Error(), token):
		t.Errorf("error shows the token: %v", err)
	}
}

func (l *lab) wantLog(part string) {
	l.t.Helper()
	text, err := os.ReadFile(l.conf.LogFile)
	if err != nil || !strings.Contains(string(text), part) {
		l.t.Errorf("log has no %q (%v):\n%s", part, err, text)
	}
	if strings.Contains(string(text), token) {
		l.t.Errorf("log shows the token:\n%s", text)
	}
}

// object is a pod or namespace.
func object(label, more string) string {
	labels := "{}"
	if label != "" {
		labels = fmt.Sprintf(`{"istio.io/dataplane-mode":%q}`, label)
	}
	return fmt.Sprintf(`{"metadata":{"uid":%q,"labels":%s%s}}`, uid, labels, more)
}

const (
	podPath       = "/api/v1/namespaces/shop/pods/cart-0"
	namespacePath = "/api/v1/namespaces/shop"
)

var (
	errTaken = errors.New("port 15001 is taken")
	address  = netip.MustParseAddr("10.1.0.7")
)

// patchAPIFile changes one member of the API file.
func (l *lab) patchAPIFile(key, value string) {
	l.t.Helper()
	text, err := os.ReadFile(l.conf.APIFile)
	content := map[string]string{}
	if err == nil {
		err = json.Unmarshal(text, &content)
	}
	if err != nil {
		l.t.Fatal(err)
	}
	content[key] = value
	l.apiFile(content)
}

// otherCA is an authority that signed nothing here.
const otherCA = `-----BEGIN CERTIFICATE-----
MIIBdjCCAR2gAwIBAgIUK8jqiR/ihWvseBgp2IXi1Qe10U0wCgYIKoZIzj0EAwIw
EDEOMAwGA1UEAwwFb3RoZXIwIBcNMjYxMTIxMTc1MDU0WhgPMjEyNjEwMjgxNzUw
NTRaMBAxDjAMBgNVBAMMBW90aGVyMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE
Xe1bNWUro4bVnNwkcbqylIQaqI0C4nrnCS5i5ESqxy66Y+Oh2BzxY7BbJCHmsse2
8oYl5s8anMSLs8u/8cB3mqNTMFEwHQYDVR0OBBYEFO+EqqQi6OFoIpjws0LU2dBl
Lc8cMB8GA1UdIwQYMBaAFO+EqqQi6OFoIpjws0LU2dBlLc8cMA8GA1UdEwEB/wQF
MAMBAf8wCgYIKoZIzj0EAwIDRwAwRAIgHy4RF0k1ZcWEqogKXSF0l1dHdR0N82pt
7YutIJsHgHoCIBEJQukTIpMnZbaNLoYs/yQ02Ktt0NcmInkMKmpYygTC
-----END CERTIFICATE-----
`
