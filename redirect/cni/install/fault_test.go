package install_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/redirect/cni"
	"github.com/culvert-mesh/culvert/redirect/cni/install"
)

// killed is what a child does: it installs or uninstalls below a directory, and is
// killed at the n-th step.
func killed() int {
	at, err := strconv.Atoi(os.Getenv("CULVERT_KILL_AT"))
	if err != nil {
		return 2
	}
	i, err := install.New(config(os.Getenv("CULVERT_ROOT")))
	if err != nil {
		return 2
	}
	i.Step(func(string) {
		if at--; at == 0 {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	})
	if os.Getenv("CULVERT_UNINSTALL") != "" {
		err = i.Uninstall(context.Background())
	} else {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- i.Run(ctx) }()
		for !i.Ready() {
			select {
			case err = <-done:
				fmt.Fprintln(os.Stderr, err)
				return 1
			default:
			}
		}
		cancel()
		err = <-done
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// TestKilled kills the process between any two changes of the disk. After each the
// runtime finds the old configuration or the new one, the next process completes the
// work, and uninstalling leaves what was there before.
func TestKilled(t *testing.T) {
	for _, tt := range []struct{ file, text string }{{"10-net.conflist", list}, {"10-net.conf", single}} {
		for _, mode := range []string{"install", "uninstall"} {
			t.Run(tt.file+"_"+mode, func(t *testing.T) {
				for at := 1; ; at++ {
					if at > 30 {
						t.Fatal("never gets through")
					}
					if !killAt(t, at, tt.file, tt.text, mode) {
						if at < 4 {
							t.Errorf("only %d steps", at-1)
						}
						return
					}
				}
			})
		}
	}
}

// killAt reports whether there was a step of that number.
func killAt(t *testing.T, at int, file, text, mode string) bool {
	n := newNode(t)
	n.write(n.net(file), text)
	before := n.snapshot()
	env := []string{"CULVERT_ROOT=" + n.root, "CULVERT_KILL_AT=" + strconv.Itoa(at)}
	if mode == "uninstall" {
		n.ensure(n.installer(), "")
		env = append(env, "CULVERT_UNINSTALL=1")
	}
	out, err := child(t, "kill", env...).CombinedOutput()
	var exit *exec.ExitError
	if err != nil {
		var ok bool
		if exit, ok = err.(*exec.ExitError); !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("child: %v\n%s", err, out)
		}
	}
	r := install.Inspect(n.cfg.NetDir)
	if p := strings.Join(r.Plugins, " "); r.Problem != nil || r.Network != "net" || p != "bridge" && p != "bridge culvert-cni" {
		t.Errorf("killed at %d: %+v; %s", at, r, n.snapshot())
	}
	if _, err := os.Stat(n.cfg.BinDir + "/culvert-cni"); err != nil && strings.Contains(n.plugins(), "culvert-cni") {
		t.Errorf("killed at %d: entry without binary", at)
	}
	i := n.installer()
	if mode == "install" {
		n.ensure(i, "")
		n.wantPlugins("bridge culvert-cni")
	}
	n.uninstall(i)
	if after := n.snapshot(); after != before {
		t.Errorf("killed at %d, then uninstalled:\n%s\nbefore:\n%s", at, after, before)
	}
	return exit != nil
}

func version(k int) string { return strings.Replace(list, "bridge", "bridge"+strconv.Itoa(k), 1) }

// TestAnotherProgramAtTheSameMoment: what it wrote is never lost, at whichever step.
func TestAnotherProgramAtTheSameMoment(t *testing.T) {
	const f = "10-net.conflist"
	for _, tt := range []struct {
		name  string
		steps []string
		want  string
	}{
		{"while_writing", []string{"beside " + f}, "changed it at the same moment"},
		{"after_exchange", []string{"exchanged " + f}, ""},
		{"both", []string{"beside " + f, "exchanged " + f}, "changed it at the same moment"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t)
			n.write(n.net(f), version(0))
			i := n.installer()
			last := 0
			i.Step(func(name string) {
				if last < len(tt.steps) && name == tt.steps[last] {
					last++
					n.rewrite(f, version(last))
				}
			})
			n.ensure(i, tt.want)
			n.ensure(i, "")
			if last != len(tt.steps) {
				t.Fatalf("steps have other names: %d seen", last)
			}
			n.wantPlugins(fmt.Sprintf("bridge%d culvert-cni", last))
		})
	}
	t.Run("while_converting", func(t *testing.T) {
		for _, step := range []string{"beside 10-net.conflist", "listed 10-net.conflist"} {
			n := newNode(t)
			n.write(n.net("10-net.conf"), single)
			i := n.installer()
			once := sync.OnceFunc(func() { n.rewrite("10-net.conf", strings.Replace(single, "bridge", "ptp", 1)) })
			i.Step(func(name string) {
				if name == step {
					once()
				}
			})
			n.ensure(i, "changed it at the same moment")
			n.wantPlugins("ptp")
			if entries, _ := os.ReadDir(n.cfg.NetDir); len(entries) != 1 {
				t.Errorf("left: %s", n.snapshot())
			}
			n.ensure(i, "")
			n.wantPlugins("ptp culvert-cni")
		}
	})
}

// TestRewriters: installers and another program at once, all the time.
func TestRewriters(t *testing.T) {
	n := newNode(t)
	n.write(n.net("10-net.conflist"), version(0))
	for range 2 {
		n.run()
	}
	const last = 300
	for k := 1; k <= last; k++ {
		n.rewrite("10-net.conflist", version(k))
	}
	n.eventually("the last version with the entry", func() bool {
		return n.plugins() == fmt.Sprintf("bridge%d culvert-cni", last)
	})
}

// TestDisk runs in a mount namespace of its own, so that its mounts end with it.
func TestDisk(t *testing.T) {
	if os.Getenv(childEnv) != "disk" {
		if os.Geteuid() != 0 {
			t.Skip("needs root, to mount file systems")
		}
		cmd := child(t, "disk")
		cmd.Args = append(cmd.Args, "-test.run=^TestDisk$", "-test.v")
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestDisk/full_net") {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	for _, tt := range []struct {
		name  string
		dir   func(n *node) string
		spoil func(t *testing.T, dir string)
		want  string
	}{
		{"full_net", func(n *node) string { return n.cfg.NetDir }, fill, "no space left on device"},
		{"full_bin", func(n *node) string { return n.cfg.BinDir }, fill, "no space left on device"},
		{"full_run", func(n *node) string { return n.cfg.RunDir }, fill, "no space left on device"},
		{"read_only_net", func(n *node) string { return n.cfg.NetDir }, readOnly, "read-only file system"},
		{"read_only_bin", func(n *node) string { return n.cfg.BinDir }, readOnly, "read-only file system"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n, dir := onDisk(t, tt.dir)
			i := n.installer()
			tt.spoil(t, dir)
			n.ensure(i, tt.want)
			first := i.Err()
			for range 10 { // what fails all the time is said as it was, and blamed on nobody
				if err := i.Ensure(); err == nil || err.Error() != first.Error() {
					t.Fatalf("got %v, want %v", err, first)
				}
			}
			if got := n.read(n.net("10-net.conflist")); got != list {
				t.Errorf("configuration is %q", got)
			}
			if got := n.snapshot(); strings.Contains(got, install.TempPrefix) {
				t.Errorf("left behind: %s", got)
			}
			mend(t, dir)
			n.ensure(i, "")
			n.wantPlugins("bridge culvert-cni")
		})
	}
	// What an earlier agent has installed does its work, and must not be gone past where the disk keeps this one from renewing it.
	for _, tt := range []struct {
		name string
		dir  func(n *node) string
	}{
		{"full_run_after_restart", func(n *node) string { return n.cfg.RunDir }},
		{"full_bin_after_upgrade", func(n *node) string { return n.cfg.BinDir }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n, dir := onDisk(t, tt.dir)
			earlier, stop := n.run()
			n.eventually("installed by an earlier agent", earlier.Ready)
			stop()
			fill(t, dir)
			n.write(n.cfg.SourceBinary, "#!/bin/sh\n# new\n")
			n.rewrite("10-net.conflist", version(1)) // by another program, without the entry
			i, err := install.New(n.cfg)
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := i.Ensure(); err == nil || !strings.Contains(err.Error(), "no space left on device") {
					t.Errorf("got %v, want that no space is left", err)
				}
			}
			if got := n.plugins(); got != "bridge1 culvert-cni" {
				t.Errorf("pods start past the plugin: the chain is %q", got)
			}
		})
	}
}

// onDisk makes a node one of whose directories is a small disk of its own.
func onDisk(t *testing.T, of func(*node) string) (n *node, dir string) {
	t.Helper()
	n = newNode(t)
	if err := os.MkdirAll(n.cfg.RunDir, 0o700); err != nil {
		t.Fatal(err)
	}
	dir = of(n)
	mount(t, dir, 0)
	t.Cleanup(func() { _ = unix.Unmount(dir, 0) })
	n.write(n.net("10-net.conflist"), list)
	return n, dir
}

func mount(t *testing.T, dir string, flags uintptr) {
	t.Helper()
	if err := unix.Mount("tmpfs", dir, "tmpfs", flags, "size=64k,mode=755"); err != nil {
		t.Fatal(err)
	}
}

func fill(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Create(dir + "/filler")
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func readOnly(t *testing.T, dir string) {
	t.Helper()
	mount(t, dir, unix.MS_REMOUNT|unix.MS_RDONLY)
}

func mend(t *testing.T, dir string) {
	t.Helper()
	mount(t, dir, unix.MS_REMOUNT)
	if err := os.Remove(dir + "/filler"); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
}

// TestTamperedAtOnce: a binary that was changed in the moment in which it was put in place
// is not taken for the one that was put there.
func TestTamperedAtOnce(t *testing.T) {
	n := newNode(t)
	n.write(n.net("10-net.conflist"), list)
	i, err := install.New(n.cfg)
	if err != nil {
		t.Fatal(err)
	}
	i.Claim(t)
	binary := filepath.Join(n.cfg.BinDir, cni.Type)
	times := 0
	i.Step(func(name string) {
		if name == "put "+cni.Type && times == 0 {
			times++
			n.write(binary, "tampered with")
		}
	})
	for range 2 {
		if err := i.Ensure(); err != nil {
			t.Fatal(err)
		}
	}
	if got := n.read(binary); times != 1 || got != "#!/bin/sh\n" {
		t.Errorf("after %d changes the binary is %q", times, got)
	}
}
