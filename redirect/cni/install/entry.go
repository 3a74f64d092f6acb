package install

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/redirect/cni"
)

// savedSuffix is added to the name of a configuration of a single plugin when a list
// is made of it. Runtimes do not read such a name.
const savedSuffix = ".culvert-saved"

// A file that another program writes anew this often within the time is not changed
// back at once any more, but once each pause.
const (
	rivalCount  = 5
	rivalWindow = time.Minute
	rivalPause  = 5 * time.Second
)

// rivals notices programs that take the entry out again and again.
type rivals struct {
	times []time.Time // of the last insertions into the same file
	file  string
}

// insert is told of each insertion that is due, and returns an error if it has to
// wait.
func (r *rivals) due(file string, now time.Time) error {
	if r.file != file {
		r.file, r.times = file, nil
	}
	for len(r.times) > 0 && now.Sub(r.times[0]) > rivalWindow {
		r.times = r.times[1:]
	}
	if n := len(r.times); n >= rivalCount && now.Sub(r.times[n-1]) < rivalPause {
		return fmt.Errorf("another program takes the entry of %s out of %s again and again: let it leave the file alone "+
			"(Cilium: cni.exclusive=false)", cni.Type, file)
	}
	r.times = append(r.times, now)
	return nil
}

// failed is told that the insertion that was due did not happen, for a reason that is no rival's.
func (r *rivals) failed() { r.times = r.times[:len(r.times)-1] }

// ensureEntry puts our plugin at the end of the chain that the runtime uses.
func (i *Installer) ensureEntry() error {
	d := scan(i.cfg.NetDir)
	if d.err != nil || d.first < 0 {
		return d.problem()
	}
	c := d.active()
	path := filepath.Join(d.path, c.name)
	if c.has(istioType) || c.chain.supported() != nil {
		return d.problem()
	}
	if err := i.chainTo(d.path, c); err != nil {
		return fmt.Errorf("chain %s in %s: %w", cni.Type, path, err)
	}
	return d.broken()
}

// chainTo puts the entry into one file.
func (i *Installer) chainTo(dir string, c conf) error {
	put := i.convert
	if c.list {
		text, err := c.chain.with(i.cfg.PluginConfig)
		if err != nil {
			return err
		}
		i.placed = c.name
		if bytes.Equal(text, c.text) {
			return nil
		}
		put = func(dir string, c conf) error { return i.replace(dir, c, text) }
	}
	if err := i.rivals.due(filepath.Join(dir, c.name), time.Now()); err != nil {
		return err
	}
	if err := put(dir, c); err != nil {
		if !errors.Is(err, errChanged) {
			i.rivals.failed()
		}
		return err
	}
	i.log.Info("CNI plugin chained", "file", i.placed, "network", c.chain.name, "made_of", c.name)
	return nil
}

// convert makes a list of a configuration of a single plugin. At any moment there is
// either the old file or the new one or both, and then the old one is the first by
// name, so a process that is killed only leaves work to be done again.
func (i *Installer) convert(dir string, c conf) error {
	text, err := c.chain.list(i.cfg.PluginConfig)
	if err != nil {
		return err
	}
	path, listed := filepath.Join(dir, c.name), listName(c.name)
	temp, err := beside(path, c.info.Mode().Perm(), c.info, bytes.NewReader(text))
	if err != nil {
		return err
	}
	i.step("beside " + listed)
	defer func() { _ = remove(temp) }()
	if other := read(dir, listed, true); other.info != nil && !made(other) && !convertedFrom(other, dir, c.name) {
		return fmt.Errorf("%s is there already, and is not made of it", listed)
	}
	if err := os.Rename(temp, filepath.Join(dir, listed)); err != nil {
		return err
	}
	i.step("listed " + listed)
	// Whatever another program makes of the old file in this moment is moved, too, and
	// then what is saved is not what the list was made of.
	if err := os.Rename(path, path+savedSuffix); err != nil {
		return err
	}
	i.step("saved " + c.name)
	saved := read(dir, c.name+savedSuffix, false)
	if !bytes.Equal(saved.text, c.text) {
		return errors.Join(errChanged, os.Rename(path+savedSuffix, path), remove(filepath.Join(dir, listed)))
	}
	i.placed = listed
	return syncDir(dir)
}

// listName is the name of the list made of a single plugin's file.
func listName(name string) string {
	return strings.TrimSuffix(name, filepath.Ext(name)) + ".conflist"
}

// convertedFrom reports whether the list is one that convert made of the file name, as
// it is now or as it was when it was saved.
func convertedFrom(list conf, dir, name string) bool {
	if list.err != nil {
		return false
	}
	plain, err := list.chain.without()
	if err != nil {
		return false
	}
	for _, n := range []string{name, name + savedSuffix} {
		from := read(dir, n, false)
		if from.err != nil {
			continue
		}
		if text, err := from.chain.list(nil); err == nil && bytes.Equal(text, plain) {
			return true
		}
	}
	return false
}

// made reports whether the list looks as convert makes them: one plugin of others,
// ours, and the white space of chain.list.
func made(list conf) bool {
	if list.err != nil || len(list.chain.plugins) != 2 || list.chain.plugins[1].kind != cni.Type {
		return false
	}
	first := list.chain.plugins[0]
	from, err := parseSingle(list.text[first.start:first.end])
	if err != nil {
		return false
	}
	text, err := from.list(nil)
	if err != nil {
		return false
	}
	plain, err := list.chain.without()
	return err == nil && bytes.Equal(text, plain)
}

// exists reports whether there is anything at path; doubts count as yes.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
