package install_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/culvert-mesh/culvert/redirect/cni/install"
)

// childEnv names what this test binary does instead of testing, see child.
const childEnv = "CULVERT_INSTALL_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) == "kill" {
		os.Exit(killed())
	}
	goleak.VerifyTestMain(m)
}

const (
	list = `{
  "cniVersion": "1.0.0",
  "name": "net",
  "plugins": [
    {"type": "bridge", "n": 12345678901234567890}
  ]
}
`
	single   = "{\"cniVersion\":\"0.4.0\", \"name\":\"net\",\n\"type\":\"bridge\"}\n"
	loopback = `{"cniVersion":"1.0.0","name":"lo","type":"loopback"}`
	entry    = `{"type":"culvert-cni","agentSocket":"/s"}`
	token    = "the-token-of-the-agent"
	ca       = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
)

// node is the part of a node's disk that is of interest.
type node struct {
	t    *testing.T
	root string
	cfg  install.Config
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{t: t, root: t.TempDir()}
	n.cfg = config(n.root)
	for _, dir := range []string{n.cfg.BinDir, n.cfg.NetDir} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	n.write(n.cfg.SourceBinary, "#!/bin/sh\n")
	n.write(n.cfg.CAFile, ca)
	n.write(n.cfg.TokenFile, token+"\n")
	return n
}

func config(root string) install.Config {
	return install.Config{
		BinDir: root + "/bin", NetDir: root + "/net", RunDir: root + "/run", SourceBinary: root + "/culvert-cni",
		PluginConfig: json.RawMessage(entry), Server: "https://10.96.0.1:443", CAFile: root + "/ca", TokenFile: root + "/token",
		Interval: 20 * time.Millisecond, Grace: -1,
	}
}

func (n *node) write(path, text string) {
	n.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) net(name string) string { return filepath.Join(n.cfg.NetDir, name) }

func (n *node) read(path string) string {
	n.t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		n.t.Fatal(err)
	}
	return string(text)
}

// rewrite changes a file in one step, as careful programs do.
func (n *node) rewrite(name, text string) {
	n.t.Helper()
	n.write(n.net("other.tmp"), text)
	if err := os.Rename(n.net("other.tmp"), n.net(name)); err != nil {
		n.t.Fatal(err)
	}
}

// installer returns one that is the newest, for looking by Ensure.
func (n *node) installer() *install.Installer {
	n.t.Helper()
	i, err := install.New(n.cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	i.Claim(n.t)
	return i
}

// run runs an installer until the end of the test, or until stop is called.
func (n *node) run() (i *install.Installer, stop func()) {
	n.t.Helper()
	i, err := install.New(n.cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- i.Run(ctx) }()
	ended := false
	stop = func() {
		if ended {
			return
		}
		ended = true
		cancel()
		if err := <-done; err != nil {
			n.t.Errorf("Run: %v", err)
		}
	}
	n.t.Cleanup(stop)
	return i, stop
}

func (n *node) ensure(i *install.Installer, want string) {
	n.t.Helper()
	err := i.Ensure()
	switch {
	case want == "" && (err != nil || !i.Ready()):
		n.t.Fatalf("Ensure = %v, ready %v", err, i.Ready())
	case want != "" && (err == nil || i.Ready() || !strings.Contains(err.Error(), want)):
		n.t.Fatalf("Ensure = %v, ready %v, want %q", err, i.Ready(), want)
	case err != nil && strings.Contains(err.Error(), token):
		n.t.Fatalf("error shows the token: %v", err)
	}
}

func (n *node) uninstall(i *install.Installer) {
	n.t.Helper()
	if err := i.Uninstall(n.t.Context()); err != nil {
		n.t.Fatal(err)
	}
}

// plugins returns the types of the plugins that the runtime would run.
func (n *node) plugins() string { return strings.Join(install.Inspect(n.cfg.NetDir).Plugins, " ") }

func (n *node) wantPlugins(want string) {
	n.t.Helper()
	if got := n.plugins(); got != want {
		n.t.Errorf("plugins are %q, want %q; %s", got, want, n.snapshot())
	}
}

// eventually waits until a condition holds.
func (n *node) eventually(what string, ok func() bool) {
	n.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			n.t.Fatalf("not within 30 s: %s; %s", what, n.snapshot())
		}
	}
}

// snapshot is everything below the directories: names, modes and contents.
func (n *node) snapshot() string {
	n.t.Helper()
	return n.snapshotOf(n.cfg.BinDir, n.cfg.NetDir, n.cfg.RunDir)
}

func (n *node) snapshotOf(dirs ...string) string {
	n.t.Helper()
	var out strings.Builder
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			st := info.Sys().(*syscall.Stat_t)
			rel, _ := filepath.Rel(n.root, path)
			fmt.Fprintf(&out, "%s %v %d:%d", rel, info.Mode(), st.Uid, st.Gid)
			switch {
			case info.Mode().IsRegular():
				text, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				fmt.Fprintf(&out, " %q", text)
			case info.Mode()&fs.ModeSymlink != 0:
				target, _ := os.Readlink(path)
				fmt.Fprintf(&out, " -> %s", target)
			}
			out.WriteString("\n")
			return nil
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			n.t.Fatal(err)
		}
	}
	return out.String()
}

// child runs this test binary with the mode in its environment.
func child(t *testing.T, mode string, env ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(append(os.Environ(), childEnv+"="+mode), env...)
	return cmd
}
