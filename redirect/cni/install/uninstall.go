package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/redirect/cni"
)

// Uninstall takes everything away that Run put there: our entry in all files, restoring
// those that were converted; after Config.Grace the binary and the API file. It does so
// for what a predecessor left as well, goes on after errors, and may be called again.
// Run has to have returned. ctx ends the waiting, not the work.
func (i *Installer) Uninstall(ctx context.Context) error {
	errs := []error{i.unchainAll()}
	if errs[0] == nil {
		// With an entry still in use the binary has to stay: without it no pod could
		// start or end.
		errs = append(errs, i.removeFiles(ctx))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("uninstall CNI plugin: %w", err)
	}
	i.log.Info("CNI plugin uninstalled")
	return nil
}

func (i *Installer) removeFiles(ctx context.Context) error {
	if binary := filepath.Join(i.cfg.BinDir, cni.Type); exists(binary) {
		wait(ctx, i.cfg.Grace)
		if err := remove(binary); err != nil {
			return err
		}
		i.step("binary removed")
	}
	later := time.Now().Add(2 * staleAfter)
	errs := []error{sweep(i.cfg.BinDir, later), sweep(i.cfg.NetDir, later), sweep(i.cfg.RunDir, later)}
	for _, name := range []string{APIFile, ownerFile, LogFile, LogFile + ".1"} {
		errs = append(errs, remove(filepath.Join(i.cfg.RunDir, name)))
		i.step("removed " + name)
	}
	_ = os.Remove(i.cfg.RunDir) // unless there is something of others in it
	return errors.Join(errs...)
}

// wait waits for d, or until ctx ends.
func wait(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// unchainAll takes our entry out of all files of NetDir. A file that other programs
// are changing is tried a few times.
func (i *Installer) unchainAll() error {
	var err error
	for range 5 {
		if err = i.unchainOnce(); !errors.Is(err, errChanged) {
			break
		}
	}
	return err
}

func (i *Installer) unchainOnce() error {
	d := scan(i.cfg.NetDir)
	if d.err != nil {
		if errors.Is(d.err, fs.ErrNotExist) {
			return nil
		}
		return d.err
	}
	var errs []error
	entries, err := os.ReadDir(i.cfg.NetDir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), savedSuffix); ok {
			errs = append(errs, i.restore(name))
		}
	}
	for _, c := range scan(i.cfg.NetDir).confs {
		if err := i.unchain(c); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", filepath.Join(i.cfg.NetDir, c.name), err))
		}
	}
	return errors.Join(errs...)
}

// unchain takes our entry out of one file.
func (i *Installer) unchain(c conf) error {
	if c.err != nil {
		if bytes.Contains(c.text, []byte(cni.Type)) {
			return fmt.Errorf("may have an entry of %s and cannot be changed: %w", cni.Type, c.err)
		}
		return nil
	}
	if !c.list || !slices.Contains(c.chain.kinds(), cni.Type) {
		return nil
	}
	for _, ext := range []string{".conf", ".json"} { // somebody was killed between making one and removing the other
		name := strings.TrimSuffix(c.name, ".conflist") + ext
		if exists(filepath.Join(i.cfg.NetDir, name)) && made(c) {
			return remove(filepath.Join(i.cfg.NetDir, c.name))
		}
	}
	text, err := c.chain.without()
	if err != nil {
		return err
	}
	if err := i.replace(i.cfg.NetDir, c, text); err != nil {
		return err
	}
	i.log.Info("CNI plugin taken out of chain", "file", c.name)
	return nil
}

// restore gives a converted file its name back and removes the list that was made of
// it. If another program has written either of them since, what it wrote stays.
func (i *Installer) restore(name string) error {
	dir := i.cfg.NetDir
	path := filepath.Join(dir, name)
	list := read(dir, listName(name), true)
	ours := list.info != nil && convertedFrom(list, dir, name)
	switch {
	case exists(path): // written anew since
		if err := remove(path + savedSuffix); err != nil {
			return err
		}
	case ours || list.info == nil && errors.Is(list.err, fs.ErrNotExist):
		if err := os.Rename(path+savedSuffix, path); err != nil {
			return err
		}
		i.step("restored " + name)
	default: // the list has been changed and is the one to keep
		return remove(path + savedSuffix)
	}
	if ours {
		if err := remove(filepath.Join(dir, list.name)); err != nil {
			return err
		}
	}
	i.log.Info("network configuration restored", "file", name)
	return syncDir(dir)
}
