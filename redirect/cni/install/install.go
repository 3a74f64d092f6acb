package install

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/redirect/cni"
)

// APIFile is the name of the file in Config.RunDir by which the plugin reaches the API
// server.
const APIFile = "api.json"

// LogFile is the name of the plugin's log in Config.RunDir; Uninstall removes it.
const LogFile = "culvert-cni.log"

// settle is how long changes of a directory are collected before they are looked at.
const settle = 20 * time.Millisecond

// Config describes an Installer. Directories are as this process sees them.
type Config struct {
	// BinDir is the runtime's directory of plugins, NetDir that of its network
	// configurations. Both are required and have to exist.
	BinDir, NetDir string
	// SourceBinary is the plugin's binary; required.
	SourceBinary string
	// PluginConfig is the entry in the chain: a JSON object whose type is
	// cni.Type; required.
	PluginConfig json.RawMessage
	// RunDir is where APIFile is written; required. It is made with mode 0700 and
	// must be gone after a reboot, or its token is an old one.
	RunDir string
	// Server is the API server as the host reaches it, "https://10.96.0.1:443";
	// CAFile has the authorities of its certificate, TokenFile the token to present.
	// All three are required. Both files are read again whenever they change.
	Server, CAFile, TokenFile string
	// Interval between looking whether everything is in place; changes of the
	// directories are seen earlier where the kernel tells them. Zero means 1 s.
	Interval time.Duration
	// Grace is how long Uninstall leaves the binary after the entry: a runtime needs
	// a moment to see that its configuration changed, and runs the old one until
	// then. Zero means 2 s, less than zero none.
	Grace time.Duration
	// Logger receives what is done and, once each, what keeps it from being done.
	// nil discards.
	Logger *slog.Logger
}

// Validate reports all faults.
func (c Config) Validate() error {
	var errs []error
	for _, f := range []struct{ name, value string }{
		{"BinDir", c.BinDir},
		{"NetDir", c.NetDir},
		{"SourceBinary", c.SourceBinary},
		{"RunDir", c.RunDir},
		{"Server", c.Server},
		{"CAFile", c.CAFile},
		{"TokenFile", c.TokenFile},
	} {
		if f.value == "" {
			errs = append(errs, fmt.Errorf("%s is required", f.name))
		}
	}
	var entry map[string]any
	if err := json.Unmarshal(c.PluginConfig, &entry); err != nil {
		errs = append(errs, fmt.Errorf("PluginConfig: %w", err))
	} else if entry["type"] != cni.Type {
		errs = append(errs, fmt.Errorf("PluginConfig: type is %.40v, not %s", entry["type"], cni.Type))
	}
	return errors.Join(errs...)
}

// Installer keeps one node's installation.
type Installer struct {
	cfg  Config
	log  *slog.Logger
	id   string            // in the owner file while this installer owns the installation
	step func(name string) // a seam for tests: called between any two changes of the disk

	flock func(fd, how int) error // a seam for tests: unix.Flock
	owner *os.File                // the owner file that this installer made, locked; nil before and after

	binary binaryState // used by ensure alone
	rivals rivals
	placed string    // file that had our entry after the last look
	swept  time.Time // when files in the making were last removed

	mu    sync.Mutex
	ready bool
	err   error
}

// New returns an Installer, which does nothing until Run.
func New(cfg Config) (*Installer, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("install CNI plugin: %w", err)
	}
	if cfg.Interval == 0 {
		cfg.Interval = time.Second
	}
	if cfg.Grace == 0 {
		cfg.Grace = 2 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Installer{cfg: cfg, log: cfg.Logger, id: newID(), step: func(string) {}, flock: unix.Flock}, nil
}

// Ready reports whether binary, API file and entry were all in place at the last
// look, and nothing speaks against the configuration that the runtime uses.
func (i *Installer) Ready() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.ready
}

// Err returns why it is not ready, or nil. Before the first look it says so.
func (i *Installer) Err() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.ready && i.err == nil {
		return errors.New("CNI plugin is not installed yet")
	}
	return i.err
}

// Run installs and keeps installed until ctx ends, then returns nil and leaves
// everything in place, for another installer to keep if there is one. Whatever goes
// wrong is reported by Err and tried again. Run is called once.
func (i *Installer) Run(ctx context.Context) error {
	events, stop := i.watch()
	defer stop()
	defer i.release()
	if err := i.claim(); err != nil {
		i.record(err)
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	soon := true
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-events:
			if strings.HasPrefix(filepath.Base(e.Name), tempPrefix) {
				continue // our own, also where the disk is full: that would go on for ever
			}
			if !soon { // changes that never end must not put off looking at them
				timer.Reset(min(settle, i.cfg.Interval))
				soon = true
			}
		case <-timer.C:
			i.record(i.ensure())
			timer.Reset(i.cfg.Interval)
			soon = false
		}
	}
}

// watch tells of changes in the two directories, as far as the kernel can. Looking
// every Interval is enough without.
func (i *Installer) watch() (events <-chan fsnotify.Event, stop func()) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		i.log.Warn("cannot watch directories, looking at intervals only", "error", err)
		return nil, func() {}
	}
	for _, dir := range []string{i.cfg.NetDir, i.cfg.BinDir} {
		if err := w.Add(dir); err != nil {
			i.log.Warn("cannot watch directory, looking at intervals only", "directory", dir, "error", err)
		}
	}
	done := make(chan struct{})
	go func() { // errors are overflows: the next look at an interval makes up for them
		defer close(done)
		for range w.Errors {
		}
	}()
	return w.Events, func() {
		_ = w.Close()
		<-done
	}
}

// record keeps the outcome of a look and logs it if it is another one than before.
func (i *Installer) record(err error) {
	i.mu.Lock()
	before, wasReady := i.err, i.ready
	i.err, i.ready = err, err == nil
	i.mu.Unlock()
	switch {
	case err == nil && !wasReady:
		i.log.Info("CNI plugin is installed", "file", i.placed)
	case err != nil && (before == nil || before.Error() != err.Error()):
		i.log.Error("CNI plugin is not installed", "error", err)
	}
}

// ensure looks once and puts in place what is missing. The entry comes last: from
// then on the runtime calls the binary. What only makes the binary or the API file an
// old one, or the owner one that has ended, does not keep the entry from coming back,
// or pods would start past the plugin.
func (i *Installer) ensure() error {
	owner, err := i.owns()
	if !owner {
		if err != nil {
			return err
		}
		return i.verify()
	}
	if err := i.sweepAll(time.Now()); err != nil {
		return err
	}
	err = errors.Join(err, i.ensureBinary())
	i.step("binary")
	err = errors.Join(err, i.ensureAPI())
	if err != nil && !(executable(filepath.Join(i.cfg.BinDir, cni.Type)) && exists(filepath.Join(i.cfg.RunDir, APIFile))) {
		return err
	}
	i.step("api")
	return errors.Join(err, i.ensureEntry())
}

// verify looks without changing anything: for an installer that is not the owner.
func (i *Installer) verify() error {
	r := scan(i.cfg.NetDir)
	if err := r.problem(); err != nil {
		return err
	}
	if !r.active().has(cni.Type) {
		return fmt.Errorf("%s has no entry of %s, and a newer agent is to put it there",
			filepath.Join(i.cfg.NetDir, r.active().name), cni.Type)
	}
	return nil
}
