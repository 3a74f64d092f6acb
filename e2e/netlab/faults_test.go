package netlab_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/culvert-mesh/culvert/e2e/netlab"
	"github.com/culvert-mesh/culvert/identity/ca/issuer"
)

// dropCommand makes the test program run a command without a capability: DROP NUMBER PROGRAM ARGS...
const dropCommand = "run-without-capability"

func runWithout(capability string, command []string) int {
	runtime.LockOSThread() // the bounding set is the thread's, and that thread becomes the command
	const prCapbsetDrop = 24
	number, err := strconv.Atoi(capability)
	if err == nil {
		if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, prCapbsetDrop, uintptr(number), 0); errno != 0 {
			err = errno
		}
	}
	if err == nil {
		err = syscall.Exec(command[0], command, os.Environ())
	}
	fmt.Fprintln(os.Stderr, "run without capability:", err)
	return 99
}

// fails runs the agent on node-a, which has to end by itself, and returns its exit code and what it says.
func (m *mesh) fails(t *testing.T, cmd *exec.Cmd) (code int, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	_, err := m.Topology().Node(nodeA).Output(cmd)
	if ctx.Err() != nil {
		t.Fatal("the agent does not end")
	}
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		t.Fatalf("the agent ended with %v", err)
	}
	return exit.ExitCode(), err.Error()
}

// What is at fault is refused with its place and reason, all of it at once, before anything is changed.
func TestFaultyStart(t *testing.T) {
	m := build(t)
	m.apply()
	m.applyPods(nodeA)
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	otherCert, otherKey := filepath.Join(dir, "other.pem"), filepath.Join(dir, "other-key.pem")
	if err := issuer.CreateFiles(otherCert, otherKey, "cluster.local"); err != nil {
		t.Fatal(err)
	}
	workloads := file("workloads.yaml", "workloads:\n- uid: a\n  name: a\n  namespace: default\n  workloadIps: [10.0.0.1, 10.0.0]\n  protocol: CARRIER-PIGEON\nservices: []\n")
	pods := file("pods.yaml", "- uid: a\n  name: a\n  namespace: default\n  serviceAccount: a\n  netns: /x\n- uid: a\n  name: b\n  namespace: default\n  netns: /y\n")
	garbage := file("garbage.pem", "-----BEGIN X509 CRL-----\nbm8=\n-----END X509 CRL-----\n")
	good := map[string]string{
		"node": nodeA, "workloads": m.StatePath(), "pods": m.PodsPath(nodeA), "ca-cert": m.CACert(), "ca-key": m.CAKey(),
		"drain-timeout": "0s",
	}
	for _, tt := range []struct {
		name  string
		flags map[string]string // on top of good ones; "" takes one away
		env   []string
		code  int
		say   []string
	}{
		{"flags", map[string]string{"mode": "nod", "drain-timeout": "1y", "loops": "x", "log-format": "xml", "ca-key": "/nonexistent", "nonsense": "1"}, nil, 2,
			[]string{"--mode: ", "--drain-timeout: ", "--loops: ", "--log-format: ", "--ca-key: ", "no such file", "--nonsense: "}},
		{"environment", nil, []string{"CONNECTION_TERMINATION_DEADLINE=", "SECRET_TTL=1s", "ENABLE_ORIG_SRC=perhaps"}, 2, []string{"$SECRET_TTL: ", "$ENABLE_ORIG_SRC: "}},
		{"nothing known", map[string]string{"workloads": "", "pods": "", "ca-cert": "", "ca-key": ""}, nil, 2,
			[]string{"--workloads: give --workloads or --xds-address", "--pods: give --pods, --handoff-socket or --kubernetes", "--ca-cert: give a source of certificates"}},
		{"two sources", map[string]string{"xds-address": "127.0.0.1:1", "ca-address": "127.0.0.1:1"}, nil, 2, []string{"--workloads: ", "not both", "--ca-cert: more than one source"}},
		{"admin for everybody", map[string]string{"admin-address": "0.0.0.0:15000"}, nil, 2, []string{"--admin-address: must be a loopback address"}},
		{"dedicated", map[string]string{"mode": "dedicated", "workload": "a/b"}, nil, 2, []string{"--workload: ", "want namespace/name/service-account"}},
		{"dedicated without workload", map[string]string{"mode": "dedicated"}, nil, 2, []string{"--workload: required", "--pods: --pods and --handoff-socket are only for --mode=node"}},
		{"log level", map[string]string{"log-level": "loud"}, nil, 2, []string{"--log-level: ", "loud"}},
		{"trust domain", map[string]string{"trust-domain": "Not A Domain"}, nil, 1, []string{"--trust-domain: "}},
		{"workload file", map[string]string{"workloads": workloads}, nil, 1, []string{workloads + ":5: ", `"10.0.0"`, workloads + ":6: ", "CARRIER-PIGEON"}},
		{"pod list", map[string]string{"pods": pods}, nil, 1, []string{pods + `:6: uid "a" stands at line 1 already`, pods + ":6: pod has no serviceAccount"}},
		{"key of another authority", map[string]string{"ca-key": otherKey}, nil, 1, []string{otherKey, m.CACert()}},
		{"key for a certificate", map[string]string{"ca-cert": m.CAKey()}, nil, 1, []string{m.CAKey()}},
		{"certificate for a key", map[string]string{"ca-key": m.CACert()}, nil, 1, []string{m.CACert()}},
		{"revocation list", map[string]string{"crl": garbage}, nil, 1, []string{"--crl: ", garbage}},
		{"place of the revocation list", map[string]string{"crl": "/nonexistent/list.pem"}, nil, 2, []string{"--crl: /nonexistent: no such file"}},
		{"address taken", map[string]string{"metrics-address": m.Topology().Node(nodeA).Addr().String() + ":15000", "ready-address": "[::]:15000"}, nil, 1, []string{"--ready-address: ", "address already in use"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(agentBinary)
			flags := maps.Clone(good)
			maps.Copy(flags, tt.flags)
			for name, value := range flags {
				if value != "" {
					cmd.Args = append(cmd.Args, "--"+name+"="+value)
				}
			}
			cmd.Env = append(os.Environ(), tt.env...)
			code, text := m.fails(t, cmd)
			if code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			for _, say := range tt.say {
				if !strings.Contains(text, say) {
					t.Errorf("it does not say %q, but: %s", say, text)
				}
			}
		})
	}
	t.Cleanup(func() {
		m.wantNoRules(m.client)
		m.mustCall(m.client, at(m.plain), "plain")
	})
}

// A capability that is missing is named, with what it is for.
func TestMissingCapability(t *testing.T) {
	m := build(t)
	m.apply()
	m.applyPods(nodeA)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for number, name := range map[int]string{12: "CAP_NET_ADMIN", 21: "CAP_SYS_ADMIN"} {
		t.Run(name, func(t *testing.T) {
			code, text := m.fails(t, exec.Command(self, dropCommand, strconv.Itoa(number), agentBinary, "--node="+nodeA, "--workloads="+m.StatePath(),
				"--pods="+m.PodsPath(nodeA), "--ca-cert="+m.CACert(), "--ca-key="+m.CAKey()))
			if code != 1 || !strings.Contains(text, "this machine cannot capture traffic: ") || !strings.Contains(text, "capability "+name) {
				t.Errorf("exit code %d: %s", code, text)
			}
		})
	}
	m.wantNoRules(m.client)
}

// A fault that comes into a file while the agent runs is told with its place; what was last good stays until the file is
// good again.
func TestFaultyChange(t *testing.T) {
	m := newMesh(t)
	for _, tt := range []struct {
		name, path, content, say string
	}{
		{"workloads", m.StatePath(), "workloads:\n- uid: x\n  protocol: CARRIER-PIGEON\n", ":3: "},
		{"pods", m.PodsPath(nodeA), "- uid: x\n  name: [\n", ":2: "},
		{"pods", m.PodsPath(nodeA), "- uid: x\n  nome: y\n", ":2: unknown key"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before, err := os.ReadFile(tt.path)
			if err != nil {
				t.Fatal(err)
			}
			seen := len(m.a.Log())
			held := m.hold(m.client, m.remote)
			if err := os.WriteFile(tt.path, []byte(tt.content), 0o644); err != nil {
				t.Fatal(err)
			}
			m.eventually("fault is told", func() bool {
				for line := range strings.Lines(m.a.Log()[seen:]) {
					if strings.Contains(line, `"level":"WARN"`) && strings.Contains(line, tt.path+tt.say) {
						return true
					}
				}
				return false
			})
			m.alive(held, "while a file is at fault")
			m.mustCall(m.client, at(m.remote), "remote")
			m.finish(held)
			if status, _, err := m.a.Get("15021", "/healthz/ready"); err != nil || status != http.StatusOK {
				t.Errorf("readiness: %d, %v", status, err)
			}
			if err := os.WriteFile(tt.path, before, 0o644); err != nil {
				t.Fatal(err)
			}
		})
	}
	late := m.pod(nodeA, "late")
	m.apply()
	m.applyPods(nodeA)
	m.eventually("the next good state is taken", func() bool {
		state := m.dump(m.a).WorkloadState[late.Workload.UID]
		return state != nil && state.State == "Up"
	})
	m.mustCall(late, at(m.remote), "remote")
	m.record(m.b, netlab.Record{"direction": "inbound", "src.identity": spiffe("late")})
}
