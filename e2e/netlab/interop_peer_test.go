package netlab_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/e2e/netlab"
	"github.com/culvert-mesh/culvert/identity/identitytest"
	"github.com/culvert-mesh/culvert/redirect"
	"github.com/culvert-mesh/culvert/redirect/topology"
)

// peerVariable names the program at the other end.
const peerVariable = "CULVERT_INTEROP_PEER"

// interopPatience is longer than patience: three programs and their peer share the machine with everything else.
const interopPatience = 30 * time.Second

// peerBinary is the other implementation. Without one the test is skipped, and the reason says what it would need, of
// which needs is what only this test does.
func peerBinary(t *testing.T, needs string) string {
	t.Helper()
	path := os.Getenv(peerVariable)
	if path == "" {
		t.Skip("no other implementation to talk to: set " + peerVariable + " to a ztunnel program (make interop PEER=path). " +
			"It is started inside a pod's network namespace in dedicated mode (PROXY_MODE=dedicated, PROXY_WORKLOAD_INFO, PACKET_MARK=1337), " +
			"reads the workload file that Culvert reads (LOCAL_XDS_PATH; XDS_ADDRESS is empty), gets its certificates from the lab's CA (CA_ADDRESS, CA_ROOT_CA) " +
			"and serves ports 15001, 15006 and 15008 behind capture rules that Culvert applies; it needs CAP_NET_ADMIN and CAP_NET_RAW there, as root has, for marked and transparent sockets. This test needs of it: " + needs)
	}
	abs, err := filepath.Abs(path)
	if err == nil {
		abs, err = exec.LookPath(abs)
	}
	if err != nil {
		t.Fatalf("%s: %v", peerVariable, err)
	}
	return abs
}

// interop is a lab in which the pod "remote" belongs to the other implementation, "client" to a Culvert agent of the
// node, and "local" to a Culvert agent of its own in dedicated mode:
//
//	node-a: client (node mode), local (dedicated), stranger (not enrolled)      node-b: remote (the peer)
//
// All certificates chain to one root. The agent of the node mints its own; the two in pods ask an Istio CA, which has an
// intermediate of the root.
type interop struct {
	*mesh
	binary string
	istio  *istiod
}

func newInterop(t *testing.T, needs string) *interop {
	t.Helper()
	binary := peerBinary(t, needs)
	m := build(t)
	m.local.SetCaptured(false)
	m.remote.SetCaptured(false)
	for _, w := range m.State.Workloads {
		w.TrustDomain, w.ClusterID = "cluster.local", "cluster1" // the peer has no defaults for them in a file
	}
	ca := identitytest.NewCA(t, "cluster.local")
	istio := &istiod{IstioCA: identitytest.NewIstioCA(t, ca.Intermediate(t)), t: t, ca: ca, root: filepath.Join(t.TempDir(), "root.pem")}
	for path, text := range map[string][]byte{m.CACert(): ca.RootPEM(), m.CAKey(): identitytest.KeyPEM(t, ca.Key), istio.root: istio.RootPEM} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return &interop{mesh: m, binary: binary, istio: istio}
}

// in is the interop of a subtest.
func (it *interop) in(t *testing.T) *interop {
	m := *it.mesh
	m.t = t
	sub := *it
	sub.mesh = &m
	return &sub
}

// program is an agent of either implementation that runs inside a pod, for that pod alone.
type program struct {
	it      *interop
	pod     *netlab.Pod
	process *topology.Process
	log     string
}

// caAddress is where the CA, which listens outside of the lab, is found by an agent in a pod: it makes all its connections
// from there.
var caAddress = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), caPort)

// run starts a program in a pod and waits until it says that it is ready.
func (it *interop) run(p *netlab.Pod, path string, args, env []string) *program {
	it.t.Helper()
	dir := it.t.TempDir()
	out, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		it.t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	cmd := exec.Command(path, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, out, out
	cmd.Env = append(os.Environ(), env...)
	process, err := p.Start(cmd)
	if err != nil {
		it.t.Fatal(err)
	}
	g := &program{it: it, pod: p, process: process, log: out.Name()}
	it.t.Cleanup(func() {
		_ = process.Signal(syscall.SIGKILL)
		<-process.Done()
		if it.t.Failed() {
			it.t.Logf("log of %s in %s, without what went well:\n%s", filepath.Base(path), p.Name(), g.troubles())
		}
		if strings.Contains(g.Log(), "WARNING: DATA RACE") {
			it.t.Errorf("%s in %s has a data race:\n%s", filepath.Base(path), p.Name(), g.Log())
		}
	})
	client := &http.Client{Transport: &http.Transport{DialContext: p.Dial, DisableKeepAlives: true}, Timeout: 5 * time.Second}
	g.wait("ready", func() bool {
		resp, err := client.Get("http://127.0.0.1:15021/healthz/ready")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	return g
}

// startPeer runs the other implementation in a pod and captures the pod's traffic for it.
func (it *interop) startPeer(p *netlab.Pod, state string, env ...string) *program {
	it.t.Helper()
	it.istio.listen(p, caAddress)
	capture, err := redirect.New(p.NS(), redirect.Options{})
	if err != nil {
		it.t.Fatal(err)
	}
	if err := capture.Reserve(); err != nil {
		it.t.Fatal(err)
	}
	g := it.runPeer(p, state, env...)
	if _, err := capture.Apply(); err != nil {
		it.t.Fatal(err)
	}
	return g
}

// runPeer starts the other implementation where CA and rules are there already.
func (it *interop) runPeer(p *netlab.Pod, state string, env ...string) *program {
	it.t.Helper()
	return it.run(p, it.binary, nil, append([]string{
		"PROXY_MODE=dedicated", "PROXY_WORKLOAD_INFO=" + workloadName(p), "PACKET_MARK=1337",
		"LOCAL_XDS_PATH=" + state, "XDS_ADDRESS=", "CLUSTER_ID=cluster1", "ISTIO_META_DNS_CAPTURE=false",
		"CA_ADDRESS=https://" + caAddress.String(), "CA_ROOT_CA=" + it.istio.root,
		"RUST_LOG=info", "LOG_FORMAT=json",
	}, env...))
}

// startDedicated runs culvert-node in a pod, for that pod alone.
func (it *interop) startDedicated(p *netlab.Pod, state string, flags ...string) *program {
	it.t.Helper()
	it.istio.listen(p, caAddress)
	return it.run(p, agentBinary, append([]string{
		"--mode=dedicated", "--capture", "--workload=" + workloadName(p), "--workloads=" + state, "--cluster=cluster1", "--dns=false",
		"--ca-address=" + caAddress.String(), "--ca-root-ca=" + it.istio.root, "--log-format=json",
	}, flags...), nil)
}

func workloadName(p *netlab.Pod) string {
	w := p.Workload
	return w.Namespace + "/" + w.Name + "/" + w.ServiceAccount
}

// Log returns what the program has written.
func (g *program) Log() string {
	text, err := os.ReadFile(g.log)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// troubles is the log without the lines of connections that ended in order.
func (g *program) troubles() string {
	var b strings.Builder
	for line := range strings.Lines(g.Log()) {
		if !strings.Contains(line, "connection complete") || strings.Contains(line, `"error":`) {
			b.WriteString(line)
		}
	}
	return b.String()
}

// AccessLog returns the access-log lines so far. Both implementations name the fields alike, but for the message's.
func (g *program) AccessLog() []netlab.Record {
	var records []netlab.Record
	lines := bufio.NewScanner(strings.NewReader(g.Log()))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r netlab.Record
		if json.Unmarshal(bytes.TrimSpace(lines.Bytes()), &r) != nil || r["scope"] != "access" {
			continue
		}
		if text, ok := r["message"]; ok {
			r["msg"] = text
		}
		r["level"] = strings.ToUpper(r.Str("level"))
		records = append(records, r)
	}
	return records
}

// wait polls a condition as long as the program runs.
func (g *program) wait(what string, ok func() bool) {
	g.it.t.Helper()
	for deadline := time.Now().Add(interopPatience); !ok(); time.Sleep(20 * time.Millisecond) {
		select {
		case <-g.process.Done():
			g.it.t.Fatalf("the program in %s ended: %v\n%s", g.pod.Name(), g.process.Wait(), g.Log())
		default:
		}
		if time.Now().After(deadline) {
			g.it.t.Fatalf("the program in %s is still not %s", g.pod.Name(), what)
		}
	}
}

// ended expects an orderly end within the time.
func (g *program) ended(within time.Duration) {
	g.it.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	select {
	case <-g.process.Done():
		if err := g.process.Wait(); err != nil {
			g.it.t.Errorf("the program in %s ended with %v", g.pod.Name(), err)
		}
	case <-ctx.Done():
		g.it.t.Errorf("the program in %s still runs after %v", g.pod.Name(), within)
	}
}

// journal is an access log.
type journal interface{ AccessLog() []netlab.Record }

// logged waits for a line with all given fields; an empty value means that the field must be absent.
func (it *interop) logged(j journal, want netlab.Record) netlab.Record {
	it.t.Helper()
	for deadline := time.Now().Add(interopPatience); ; time.Sleep(50 * time.Millisecond) {
		for _, r := range j.AccessLog() {
			if matches(r, want) {
				return r
			}
		}
		if time.Now().After(deadline) {
			all := j.AccessLog()
			it.t.Errorf("no access-log line with %v; the last of %d are %v", want, len(all), all[max(0, len(all)-6):])
			return netlab.Record{}
		}
	}
}

func matches(r, want netlab.Record) bool {
	for k, v := range want {
		got := r.Str(k)
		if text := fmt.Sprint(v); got != text && (k != "error" || text == "" || !strings.Contains(got, text)) {
			return false
		}
	}
	return true
}
