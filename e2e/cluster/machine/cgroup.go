package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// CgroupPrefix begins the name of every machine's cgroup.
const CgroupPrefix = "culvert-cluster-"

const cgroupRoot = "/sys/fs/cgroup"

// Cgroup is the path of the machine's cgroup below the root of every hierarchy.
func Cgroup(name string) string { return "/" + CgroupPrefix + name }

// Unified reports whether this machine has cgroup v2 alone, rather than v1 with or without v2 beside it.
func Unified() bool {
	_, err := os.Stat(cgroupRoot + "/cgroup.controllers")
	return err == nil
}

// hierarchies are the mount points of all cgroup hierarchies.
func hierarchies() ([]string, error) {
	if Unified() {
		return []string{cgroupRoot}, nil
	}
	entries, err := os.ReadDir(cgroupRoot)
	if err != nil {
		return nil, fmt.Errorf("list cgroup hierarchies: %w", err)
	}
	var dirs []string
	for _, e := range entries {
		dir := filepath.Join(cgroupRoot, e.Name())
		// Names of joined controllers (cpu,cpuacct) have symbolic links beside them.
		if info, err := os.Lstat(dir); err == nil && info.IsDir() {
			if _, err := os.Stat(dir + "/cgroup.procs"); err == nil {
				dirs = append(dirs, dir)
			}
		}
	}
	if len(dirs) == 0 {
		return nil, errors.New("list cgroup hierarchies: none is mounted at " + cgroupRoot)
	}
	return dirs, nil
}

// makeCgroup creates the cgroup in every hierarchy and makes it usable for processes and for children.
func makeCgroup(path string) error {
	roots, err := hierarchies()
	if err != nil {
		return err
	}
	for _, root := range roots {
		dir := root
		for part := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
			if err := delegate(dir); err != nil {
				return err
			}
			parent := dir
			dir = filepath.Join(dir, part)
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("create cgroup: %w", err)
			}
			// cpuset of v1 takes no process before it knows where that may run.
			for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
				if err := inherit(filepath.Join(parent, file), filepath.Join(dir, file)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// delegate hands the controllers of a v2 cgroup on to its children; v1 has no such file.
func delegate(dir string) error {
	text, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read cgroup controllers: %w", err)
	}
	for controller := range strings.FieldsSeq(string(text)) {
		if !Unified() {
			break // beside v1 the v2 hierarchy only names processes
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+controller), 0o644); err != nil {
			return fmt.Errorf("delegate controller %s: %w", controller, err)
		}
	}
	return nil
}

func inherit(from, to string) error {
	if Unified() {
		return nil
	}
	value, err := os.ReadFile(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = os.WriteFile(to, value, 0o644)
	}
	if err != nil {
		return fmt.Errorf("prepare cpuset: %w", err)
	}
	return nil
}

// joinCgroup moves the process into the cgroup in every hierarchy.
func joinCgroup(path string, pid int) error {
	roots, err := hierarchies()
	if err != nil {
		return err
	}
	for _, root := range roots {
		file := filepath.Join(root, path, "cgroup.procs")
		if err := os.WriteFile(file, []byte(strconv.Itoa(pid)), 0o644); err != nil {
			return fmt.Errorf("join cgroup %s: %w", file, err)
		}
	}
	return nil
}

// clearCgroup kills whatever lives in the cgroup or below it and removes it from every hierarchy.
func clearCgroup(path string) error {
	roots, err := hierarchies()
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		var failed error
		for _, root := range roots {
			failed = errors.Join(failed, clearOnce(filepath.Join(root, path)))
		}
		if failed == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("remove cgroup %s: %w", path, failed)
		}
	}
}

func clearOnce(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			dirs = append(dirs, name)
		}
		return nil // what vanishes meanwhile is what we want
	})
	if err != nil {
		return err
	}
	var failed error
	for i := len(dirs) - 1; i >= 0; i-- {
		if text, err := os.ReadFile(filepath.Join(dirs[i], "cgroup.procs")); err == nil {
			for field := range strings.FieldsSeq(string(text)) {
				if pid, err := strconv.Atoi(field); err == nil && pid > 1 && pid != os.Getpid() {
					_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended meanwhile; the rmdir below tells
				}
			}
		}
		if err := syscall.Rmdir(dirs[i]); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = errors.Join(failed, &os.PathError{Op: "rmdir", Path: dirs[i], Err: err})
		}
	}
	return failed
}

// strays are the names of machines of which a cgroup exists.
func strays() ([]string, error) {
	roots, err := hierarchies()
	if err != nil {
		return nil, err
	}
	seen := make(map[string]bool)
	var names []string
	for _, root := range roots {
		dirs, err := filepath.Glob(filepath.Join(root, CgroupPrefix+"*"))
		if err != nil {
			return nil, err
		}
		for _, dir := range dirs {
			name := strings.TrimPrefix(filepath.Base(dir), CgroupPrefix)
			if !seen[name] {
				seen[name] = true
				names = append(names, name)
			}
		}
	}
	return names, nil
}
