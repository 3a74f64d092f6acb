package install_test

import (
	"encoding/json"
	"errors"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/redirect/cni/install"
)

func TestRunAndUninstall(t *testing.T) {
	for _, tt := range []struct{ file, text, then string }{
		{"10-net.conflist", list, "10-net.conflist"},
		{"10-net.conf", single, "10-net.conflist"},
		{"10-net.json", single, "10-net.conflist"},
		{"10-kuberouter.conflist", strings.ReplaceAll(list, "1.0.0", "0.3.0"), "10-kuberouter.conflist"},
	} {
		t.Run(tt.file, func(t *testing.T) {
			n := newNode(t)
			n.write(n.net(tt.file), tt.text)
			n.write(n.net("99-loopback.conf"), loopback)
			n.write(n.net("README"), "not ours")
			n.write(n.cfg.BinDir+"/bridge", "not ours")
			if err := os.Chmod(n.net(tt.file), 0o640); err != nil {
				t.Fatal(err)
			}
			if os.Geteuid() == 0 {
				if err := os.Chown(n.net(tt.file), 7, 8); err != nil {
					t.Fatal(err)
				}
			}
			before := n.snapshot()
			i, stop := n.run()
			n.eventually("ready", i.Ready)
			r := install.Inspect(n.cfg.NetDir)
			if r.File != tt.then || strings.Join(r.Plugins, " ") != "bridge culvert-cni" || r.Problem != nil || r.Network != "net" {
				t.Errorf("report %+v", r)
			}
			if info, err := os.Stat(n.net(tt.then)); err != nil || info.Mode() != 0o640 {
				t.Errorf("%v, %v", info, err)
			}
			if info, err := os.Stat(n.cfg.BinDir + "/culvert-cni"); err != nil || info.Mode() != 0o755 {
				t.Errorf("binary: %v, %v", info, err)
			}
			api := n.cfg.RunDir + "/api.json"
			if info, err := os.Stat(api); err != nil || info.Mode() != 0o600 {
				t.Errorf("API file: %v, %v", info, err)
			}
			var got map[string]string
			if err := json.Unmarshal([]byte(n.read(api)), &got); err != nil || got["server"] != n.cfg.Server || got["caPEM"] != ca || got["token"] != token {
				t.Errorf("API file has %v, %v", got, err)
			}
			stop()
			n.write(n.cfg.RunDir+"/"+install.LogFile, "a line")
			n.uninstall(i)
			if after := n.snapshot(); after != before {
				t.Errorf("after uninstall:\n%s\nbefore:\n%s", after, before)
			}
			n.uninstall(i)
		})
	}
}

// TestKeepsInstalled: whatever other programs do to it.
func TestKeepsInstalled(t *testing.T) {
	n := newNode(t)
	n.write(n.net("10-net.conflist"), list)
	i, _ := n.run()
	n.eventually("ready", i.Ready)
	chained := func() bool { return n.plugins() == "bridge culvert-cni" && i.Ready() }

	n.rewrite("10-net.conflist", list)
	n.eventually("entry put back", chained)

	n.rewrite("05-first.conflist", strings.ReplaceAll(list, "bridge", "ptp"))
	n.eventually("entry in the file that sorts earlier", func() bool { return n.plugins() == "ptp culvert-cni" && i.Ready() })
	if !strings.Contains(n.read(n.net("10-net.conflist")), "culvert-cni") {
		t.Error("the file that is no longer the first lost its entry")
	}
	if err := os.Remove(n.net("05-first.conflist")); err != nil {
		t.Fatal(err)
	}
	n.eventually("the other file again", chained)

	n.rewrite("00-net.conf", single)
	n.eventually("single plugin converted", func() bool {
		return install.Inspect(n.cfg.NetDir).File == "00-net.conflist" && chained()
	})
	n.rewrite("00-net.conf", strings.ReplaceAll(single, "bridge", "macvlan"))
	n.eventually("converted once more", func() bool { return n.plugins() == "macvlan culvert-cni" && i.Ready() })

	binary := n.cfg.BinDir + "/culvert-cni"
	if err := os.Remove(binary); err != nil {
		t.Fatal(err)
	}
	n.eventually("binary put back", func() bool { _, err := os.Stat(binary); return err == nil })
	n.write(binary, "tampered with")
	n.eventually("binary mended", func() bool { return n.read(binary) == "#!/bin/sh\n" })
	n.write(n.cfg.SourceBinary, "#!/bin/sh\n# new\n")
	n.eventually("binary upgraded", func() bool { return n.read(binary) == "#!/bin/sh\n# new\n" })

	n.write(n.cfg.TokenFile, "renewed-token")
	n.eventually("token renewed", func() bool { return strings.Contains(n.read(n.cfg.RunDir+"/api.json"), "renewed-token") })
	if err := os.Rename(n.cfg.RunDir, n.cfg.RunDir+".old"); err != nil { // at once: what is removed in steps is put back between them
		t.Fatal(err)
	}
	n.eventually("run directory made anew", func() bool { _, err := os.Stat(n.cfg.RunDir + "/api.json"); return err == nil && i.Ready() })
}

// TestWaits: with what is wrong said clearly, and the rest of the disk left alone, until
// it is right.
func TestWaits(t *testing.T) {
	tests := []struct {
		name string
		set  func(n *node) error
		want string
	}{
		{"nothing", func(*node) error { return nil }, "has no network configuration yet"},
		{"only_loopback", func(n *node) error { n.write(n.net("99-loopback.conf"), loopback); return nil }, "has no network configuration yet"},
		{"directory", func(n *node) error { return os.Mkdir(n.net("10-net.conflist"), 0o755) }, "has no network configuration yet"},
		{"not_json", file("10-net.conflist", "{\n \"name\": oops"), "10-net.conflist is not valid: line 2, column 10: invalid character 'o'"},
		{"list_in_conf", file("10-net.conf", list), "10-net.conf is not valid: plugin has no type"},
		{"old_version", file("10-net.conflist", strings.ReplaceAll(list, "1.0.0", "0.2.0")), `cniVersion "0.2.0" is not one of`},
		{"no_version", file("10-net.conf", `{"name":"net","type":"bridge"}`), `cniVersion "" is not one of`},
		{"istio", file("10-net.conflist", strings.ReplaceAll(list, "bridge", "istio-cni")), "istio-cni already captures"},
		{"huge", file("10-net.conflist", strings.Repeat(" ", 2<<20)), "is longer than"},
		{"link", func(n *node) error {
			n.write(n.net("target"), list)
			return os.Symlink("target", n.net("10-net.conflist"))
		}, "is a symbolic link"},
		{"pipe", func(n *node) error { return syscall.Mkfifo(n.net("10-net.conflist"), 0o600) }, "is not a regular file"},
		{"no_net_dir", func(n *node) error { return os.Remove(n.cfg.NetDir) }, "list network configurations"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t)
			if err := tt.set(n); err != nil {
				t.Fatal(err)
			}
			before := n.snapshotOf(n.cfg.NetDir)
			i := n.installer()
			n.ensure(i, tt.want)
			if after := n.snapshotOf(n.cfg.NetDir); after != before {
				t.Errorf("changed from\n%s\nto\n%s", before, after)
			}
			if err := os.RemoveAll(n.cfg.NetDir); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(n.cfg.NetDir, 0o755); err != nil {
				t.Fatal(err)
			}
			n.write(n.net("10-net.conflist"), list)
			n.ensure(i, "")
			n.wantPlugins("bridge culvert-cni")
		})
	}
}

func file(name, text string) func(*node) error {
	return func(n *node) error { n.write(n.net(name), text); return nil }
}

// TestBrokenBeforeValid: runtimes differ in whether they skip it, so the valid one is
// chained, and still it is not all right.
func TestBrokenBeforeValid(t *testing.T) {
	n := newNode(t)
	n.write(n.net("05-broken.conflist"), "{")
	n.write(n.net("10-net.conflist"), list)
	i := n.installer()
	n.ensure(i, "05-broken.conflist is not valid: line 1, column 1")
	n.wantPlugins("bridge culvert-cni")
	n.rewrite("05-broken.conflist", strings.ReplaceAll(list, "bridge", "ptp"))
	n.ensure(i, "")
	n.wantPlugins("ptp culvert-cni")
}

func TestIstioComesLater(t *testing.T) {
	n := newNode(t)
	n.write(n.net("10-net.conflist"), list)
	i := n.installer()
	n.ensure(i, "")
	with := strings.Replace(n.read(n.net("10-net.conflist")), "\n  ]", ",{\"type\":\"istio-cni\"}\n  ]", 1)
	n.rewrite("10-net.conflist", with)
	if err := i.Ensure(); !errors.Is(err, install.ErrIstio) {
		t.Errorf("Ensure = %v", err)
	}
	if r := install.Inspect(n.cfg.NetDir); !errors.Is(r.Problem, install.ErrIstio) {
		t.Errorf("Inspect says %v", r.Problem)
	}
}

func TestBadSources(t *testing.T) {
	tests := []struct {
		name string
		set  func(n *node) error
		want string
	}{
		{"no_source", func(n *node) error { return os.Remove(n.cfg.SourceBinary) }, "culvert-cni: lstat"},
		{"no_bin_dir", func(n *node) error { return os.Remove(n.cfg.BinDir) }, "install "},
		{"directory_there", func(n *node) error { return os.Mkdir(n.cfg.BinDir+"/culvert-cni", 0o755) }, "is a directory"},
		{"no_ca", func(n *node) error { return os.Remove(n.cfg.CAFile) }, "no such file"},
		{"no_certificate", func(n *node) error { return os.WriteFile(n.cfg.CAFile, []byte("x"), 0o600) }, "has no certificate"},
		{"no_token", func(n *node) error { return os.Remove(n.cfg.TokenFile) }, "no such file"},
		{"empty_token", func(n *node) error { return os.WriteFile(n.cfg.TokenFile, []byte("\n"), 0o600) }, "has no token"},
		{"two_tokens", func(n *node) error { return os.WriteFile(n.cfg.TokenFile, []byte(token+"\nx"), 0o600) }, "has no token"},
		{"huge_token", func(n *node) error { return os.WriteFile(n.cfg.TokenFile, make([]byte, 1<<20), 0o600) }, "is longer than"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t)
			n.write(n.net("10-net.conflist"), list)
			if err := tt.set(n); err != nil {
				t.Fatal(err)
			}
			n.ensure(n.installer(), tt.want)
			if got := n.read(n.net("10-net.conflist")); got != list {
				t.Errorf("chained though the plugin could not work: %s", got)
			}
		})
	}
	t.Run("not_https", func(t *testing.T) {
		n := newNode(t)
		n.cfg.Server = "http://10.96.0.1"
		n.ensure(n.installer(), "is not a https URL")
	})
}

// TestOldAPIFile: the entry is put back though the API file cannot be made new.
func TestOldAPIFile(t *testing.T) {
	n := newNode(t)
	n.write(n.net("10-net.conflist"), list)
	i := n.installer()
	n.ensure(i, "")
	if err := os.Remove(n.cfg.TokenFile); err != nil {
		t.Fatal(err)
	}
	n.rewrite("10-net.conflist", list)
	n.ensure(i, "no such file")
	n.wantPlugins("bridge culvert-cni")
	n.write(n.cfg.TokenFile, token)
	n.ensure(i, "")
}

// TestLinkToBinary: a link in the place of the binary is replaced, not followed.
func TestLinkToBinary(t *testing.T) {
	n := newNode(t)
	n.write(n.net("10-net.conflist"), list)
	n.write(n.root+"/other", "other program")
	if err := os.Symlink(n.root+"/other", n.cfg.BinDir+"/culvert-cni"); err != nil {
		t.Fatal(err)
	}
	n.ensure(n.installer(), "")
	if info, err := os.Lstat(n.cfg.BinDir + "/culvert-cni"); err != nil || !info.Mode().IsRegular() || n.read(n.root+"/other") != "other program" {
		t.Errorf("%v, %v, %s", info, err, n.read(n.root+"/other"))
	}
}

// TestNewestOwns: during an upgrade the agent that started last decides.
func TestNewestOwns(t *testing.T) {
	n := newNode(t)
	n.write(n.net("10-net.conflist"), list)
	old := n.installer()
	n.ensure(old, "")
	n.cfg.PluginConfig = json.RawMessage(`{"type":"culvert-cni","agentSocket":"/new"}`)
	newer := n.installer()
	n.ensure(newer, "")
	after := n.snapshot()
	n.ensure(old, "")
	if got := n.snapshot(); got != after || !strings.Contains(got, "/new") {
		t.Errorf("the old one changed\n%s\nto\n%s", after, got)
	}
	n.rewrite("10-net.conflist", list)
	n.ensure(old, "a newer agent is to put it there")
	if got := n.read(n.net("10-net.conflist")); got != list {
		t.Errorf("the old one changed it to %s", got)
	}
}

// TestNewestGivesUp: when the agent that started last has ended and an older one goes on (an upgrade that is rolled
// back), the older one keeps the installation again.
func TestNewestGivesUp(t *testing.T) {
	for _, tt := range []struct {
		name  string
		newer func(n *node)
	}{
		{"orderly", func(n *node) {
			newer, stop := n.run()
			n.eventually("newer ready", newer.Ready)
			stop()
			n.t.Cleanup(func() { runtime.KeepAlive(newer) }) // it is Run that lets go, not the garbage collector
		}},
		{"killed", func(n *node) {
			out, err := child(t, "kill", "CULVERT_ROOT="+n.root, "CULVERT_KILL_AT=3").CombinedOutput()
			if err == nil || err.Error() != "signal: killed" {
				t.Fatalf("child: %v\n%s", err, out)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t)
			n.write(n.net("10-net.conflist"), list)
			old, _ := n.run()
			n.eventually("ready", old.Ready)
			tt.newer(n)
			n.write(n.cfg.TokenFile, "renewed-token")
			n.eventually("token renewed", func() bool { return strings.Contains(n.read(n.cfg.RunDir+"/api.json"), "renewed-token") })
			n.rewrite("10-net.conflist", list)
			n.eventually("entry put back", func() bool { return n.plugins() == "bridge culvert-cni" && old.Ready() })
		})
	}
}

// TestNewestOwnsWithoutLocks: where nobody can tell whether it has ended, it is taken to live.
func TestNewestOwnsWithoutLocks(t *testing.T) {
	n := newNode(t)
	n.write(n.net("10-net.conflist"), list)
	var both [2]*install.Installer
	for k := range both {
		i, err := install.New(n.cfg)
		if err != nil {
			t.Fatal(err)
		}
		i.NoLocks()
		i.Claim(t)
		both[k] = i
		n.ensure(i, "")
	}
	n.rewrite("10-net.conflist", list)
	n.ensure(both[0], "a newer agent is to put it there")
	n.ensure(both[1], "")
	n.wantPlugins("bridge culvert-cni")
}

// TestUninstallKeepsOthersWork: what other programs changed since stays.
func TestUninstallKeepsOthersWork(t *testing.T) {
	t.Run("list_changed", func(t *testing.T) {
		n := newNode(t)
		n.write(n.net("10-net.conf"), single)
		i := n.installer()
		n.ensure(i, "")
		n.rewrite("10-net.conflist", strings.Replace(n.read(n.net("10-net.conflist")), "\n  ]", ",{\"type\":\"tuning\"}\n  ]", 1))
		n.uninstall(i)
		n.wantPlugins("bridge tuning")
	})
	t.Run("single_written_anew", func(t *testing.T) {
		n := newNode(t)
		n.write(n.net("10-net.conf"), single)
		i := n.installer()
		n.ensure(i, "")
		n.write(n.net("10-net.conf"), strings.ReplaceAll(single, "bridge", "ptp"))
		n.uninstall(i)
		n.wantPlugins("ptp")
		if entries, _ := os.ReadDir(n.cfg.NetDir); len(entries) != 1 {
			t.Errorf("left: %s", n.snapshot())
		}
	})
	t.Run("broken_with_entry", func(t *testing.T) {
		n := newNode(t)
		n.write(n.net("10-net.conflist"), list)
		i := n.installer()
		n.ensure(i, "")
		n.write(n.net("20-broken.conflist"), `{"plugins":[{"type":"culvert-cni"}`)
		err := i.Uninstall(t.Context())
		if err == nil || !strings.Contains(err.Error(), "20-broken.conflist: may have an entry of culvert-cni") {
			t.Errorf("Uninstall = %v", err)
		}
		if _, err := os.Stat(n.cfg.BinDir + "/culvert-cni"); err != nil {
			t.Errorf("binary was removed though an entry may be in use: %v", err)
		}
		if got := n.read(n.net("10-net.conflist")); got != list {
			t.Errorf("the other file is %s", got)
		}
	})
	t.Run("nothing_there", func(t *testing.T) {
		n := newNode(t)
		i := n.installer()
		if err := os.RemoveAll(n.cfg.NetDir); err != nil {
			t.Fatal(err)
		}
		n.uninstall(i)
	})
}

// TestUnrelatedList: a list of the same name that was not made of the single plugin.
func TestUnrelatedList(t *testing.T) {
	n := newNode(t)
	n.write(n.net("10-net.conf"), single)
	n.write(n.net("10-net.conflist"), list)
	before := n.snapshotOf(n.cfg.NetDir)
	i := n.installer()
	for range 10 { // said as it is each time, and blamed on no other program
		n.ensure(i, "10-net.conflist is there already, and is not made of it")
	}
	if after := n.snapshotOf(n.cfg.NetDir); after != before {
		t.Errorf("changed from\n%s\nto\n%s", before, after)
	}
}

// TestListOfAnEarlierSingle: killed after the list was made, and another program wrote
// the single plugin anew before anybody looked again.
func TestListOfAnEarlierSingle(t *testing.T) {
	n := newNode(t)
	n.write(n.net("10-net.conf"), single)
	i := n.installer()
	n.ensure(i, "")
	if err := os.Remove(n.net("10-net.conf.culvert-saved")); err != nil {
		t.Fatal(err)
	}
	n.write(n.net("10-net.conf"), strings.ReplaceAll(single, "bridge", "ptp"))
	n.ensure(i, "")
	n.wantPlugins("ptp culvert-cni")
}

func TestRivals(t *testing.T) {
	var r install.Rivals
	now := time.Now()
	for k := range 5 {
		if err := r.Due("a", now.Add(time.Duration(k)*time.Second)); err != nil {
			t.Fatalf("insertion %d: %v", k, err)
		}
	}
	if err := r.Due("a", now.Add(5*time.Second)); err == nil || !strings.Contains(err.Error(), "cni.exclusive=false") {
		t.Errorf("sixth within seconds = %v", err)
	}
	if err := r.Due("a", now.Add(10*time.Second)); err != nil {
		t.Errorf("after a pause: %v", err)
	}
	if err := r.Due("a", now.Add(11*time.Second)); err == nil {
		t.Error("right after that it was let through")
	}
	if err := r.Due("b", now.Add(11*time.Second)); err != nil {
		t.Errorf("another file: %v", err)
	}
	if err := r.Due("b", now.Add(10*time.Minute)); err != nil {
		t.Errorf("much later: %v", err)
	}
}

func TestConfig(t *testing.T) {
	if _, err := install.New(install.Config{}); err == nil || !strings.Contains(err.Error(), "TokenFile is required") {
		t.Errorf("New = %v", err)
	}
	cfg := config("/x")
	for _, bad := range []string{"", "{", "7", `{"type":"bridge"}`} {
		cfg.PluginConfig = json.RawMessage(bad)
		if _, err := install.New(cfg); err == nil || !strings.Contains(err.Error(), "PluginConfig") {
			t.Errorf("New with %q = %v", bad, err)
		}
	}
	i, err := install.New(config("/x"))
	if err != nil || i.Ready() || i.Err() == nil {
		t.Errorf("before the first look: %v, %v, %v", err, i.Ready(), i.Err())
	}
}

// TestStaleTemps: what a killed process left is removed, what another one is making is not.
func TestStaleTemps(t *testing.T) {
	n := newNode(t)
	n.write(n.net("10-net.conflist"), list)
	stale, fresh := n.net(install.TempPrefix+"1"), n.net(install.TempPrefix+"2")
	n.write(stale, "x")
	n.write(fresh, "x")
	past := time.Now().Add(-time.Hour)
	if err := os.Chtimes(stale, past, past); err != nil {
		t.Fatal(err)
	}
	n.ensure(n.installer(), "")
	if _, err := os.Stat(stale); err == nil {
		t.Error("stale file is there")
	}
	if _, err := os.Stat(fresh); err != nil {
		t.Error(err)
	}
}
