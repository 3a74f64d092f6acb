package install

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// maxConf is the largest configuration that is read, in bytes.
const maxConf = 1 << 20

// istioType is the type of Istio's plugin.
const istioType = "istio-cni"

// ErrIstio says that Istio's CNI plugin is in the chain: pods would be captured twice.
var ErrIstio = errors.New("istio-cni already captures")

// conf is one file of the directory of network configurations.
type conf struct {
	name  string
	list  bool // a list of plugins, not a single one
	info  fs.FileInfo
	text  []byte
	chain chain
	err   error // why it is of no use to a runtime
}

func (c conf) has(kind string) bool { return slices.Contains(c.chain.kinds(), kind) }

// loopback reports whether it is the configuration of the loopback interface, which
// some runtimes keep beside that of the network.
func (c conf) loopback() bool {
	return len(c.chain.plugins) == 1 && c.chain.plugins[0].kind == "loopback"
}

// dir is what a directory of network configurations has.
type dir struct {
	path  string
	confs []conf // by name
	first int    // index of the first valid one, or -1
	err   error
}

// scan reads the directory as runtimes do: files that end in .conf, .conflist and
// .json, by name.
func scan(path string) dir {
	d := dir{path: path, first: -1}
	entries, err := os.ReadDir(path) // sorted by name
	if err != nil {
		d.err = fmt.Errorf("list network configurations: %w", err)
		return d
	}
	for _, e := range entries {
		ext := filepath.Ext(e.Name())
		if e.IsDir() || ext != ".conf" && ext != ".conflist" && ext != ".json" {
			continue
		}
		c := read(path, e.Name(), ext == ".conflist")
		if errors.Is(c.err, fs.ErrNotExist) { // gone meanwhile
			continue
		}
		d.confs = append(d.confs, c)
		if c.err == nil && !c.loopback() && d.first < 0 {
			d.first = len(d.confs) - 1
		}
	}
	return d
}

// read reads one file. What is no regular file is refused: replacing a symbolic link
// would leave its target alone, and take the link away from whoever made it.
func read(dir, name string, list bool) conf {
	c := conf{name: name, list: list}
	fd, err := unix.Open(filepath.Join(dir, name), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		if errors.Is(err, unix.ELOOP) {
			err = errors.New("is a symbolic link; only regular files are changed")
		}
		c.err = err
		return c
	}
	file := os.NewFile(uintptr(fd), name)
	defer func() { _ = file.Close() }()
	if c.info, c.err = file.Stat(); c.err != nil {
		return c
	}
	if !c.info.Mode().IsRegular() {
		c.err = errors.New("is not a regular file")
		return c
	}
	c.text, c.err = io.ReadAll(io.LimitReader(file, maxConf+1))
	switch {
	case c.err != nil:
	case len(c.text) > maxConf:
		c.err = fmt.Errorf("is longer than %d bytes", maxConf)
	case list:
		c.chain, c.err = parseChain(c.text)
	default:
		c.chain, c.err = parseSingle(c.text)
	}
	return c
}

// active returns the configuration that the runtime uses; problem said nil.
func (d dir) active() conf { return d.confs[d.first] }

// problem says why the directory has no configuration that can be chained to. A file
// without use before the first valid one is a problem, too: some runtimes skip it,
// others start no pod until it is mended, and then it is the first.
func (d dir) problem() error {
	if d.err != nil {
		return d.err
	}
	if d.first >= 0 {
		c := d.active()
		path := filepath.Join(d.path, c.name)
		if c.has(istioType) {
			return fmt.Errorf("%w: its plugin is in %s; uninstall it, or run under it", ErrIstio, path)
		}
		if err := c.chain.supported(); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return d.broken()
}

// broken reports the files of no use before the first valid one, and that there is none.
func (d dir) broken() error {
	before := d.confs
	var errs []error
	if d.first >= 0 {
		before = before[:d.first]
	}
	for _, c := range before {
		if c.err != nil {
			errs = append(errs, fmt.Errorf("network configuration %s is not valid: %w", filepath.Join(d.path, c.name), c.err))
		}
	}
	if d.first < 0 && len(errs) == 0 {
		errs = append(errs, fmt.Errorf("%s has no network configuration yet: waiting for the cluster's CNI (is this its directory? cni.netDir, --values-profile)", d.path))
	}
	return errors.Join(errs...)
}

// Report is what a directory of network configurations says.
type Report struct {
	File       string   // the configuration that runtimes use; empty if there is none
	Network    string   // its name
	CNIVersion string   // that it is written in
	Plugins    []string // types of the plugins in their order
	Problem    error    // why it cannot be chained to, or nil
}

// Inspect reads the directory without changing anything.
func Inspect(netDir string) Report {
	d := scan(netDir)
	r := Report{Problem: d.problem()}
	if d.first >= 0 {
		c := d.active()
		r.File, r.Network, r.CNIVersion, r.Plugins = c.name, c.chain.name, c.chain.version, c.chain.kinds()
	}
	return r
}
