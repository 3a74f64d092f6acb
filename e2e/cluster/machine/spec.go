package machine

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
)

// Spec describes a machine. It is written into the machine's directory, where its first process reads it.
type Spec struct {
	// Name is the machine's host name and names its cgroups: letters, digits and hyphens. Required.
	Name string `json:"name"`
	// Dir is the absolute directory for everything that the machine writes. Its file system must be able to carry an
	// overlay's upper layer (ext4, xfs, btrfs and tmpfs can, an overlay cannot). Required.
	Dir string `json:"dir"`
	// Binds are directories of this machine that the new one sees at the same path, writable and not layered, as it does Dir.
	Binds []string `json:"binds"`
	// Volumes are directories below Dir that appear elsewhere: path inside the machine to name below Dir.
	Volumes map[string]string `json:"volumes"`
	// Files are written at each start: path inside the machine to content, mode 0644.
	Files map[string]string `json:"files"`
	// Settings are kernel settings that programs of the machine read as if they were so: path below /proc/sys to value. They
	// are not applied, and no setting outside of /proc/sys/net can be changed from inside: the kernel is shared.
	Settings map[string]string `json:"settings"`
	// Units are the programs that the first process starts, in order, and starts again one second after they end.
	Units []Unit `json:"units"`
}

// Unit is one supervised program. Its output goes to Dir/log/NAME.log, its processes into the cgroup NAME of the machine.
type Unit struct {
	Name string   `json:"name"`
	Args []string `json:"args"`
	Env  []string `json:"env,omitempty"` // besides PATH and HOME
}

func (s Spec) validate() error {
	name := regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?$`)
	switch {
	case !name.MatchString(s.Name):
		return fmt.Errorf("machine name %q is not a host name", s.Name)
	case !filepath.IsAbs(s.Dir) || filepath.Clean(s.Dir) != s.Dir || s.Dir == "/":
		return fmt.Errorf("directory %q is not absolute and clean", s.Dir)
	}
	for _, u := range s.Units {
		if !name.MatchString(u.Name) || len(u.Args) == 0 {
			return fmt.Errorf("unit %q needs a name and a command", u.Name)
		}
	}
	return nil
}

func (s Spec) path(elem ...string) string {
	return filepath.Join(append([]string{s.Dir}, elem...)...)
}

func (s Spec) write() error {
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(s.path("machine.json"), text, 0o600)
}

func readSpec(dir string) (Spec, error) {
	text, err := os.ReadFile(filepath.Join(dir, "machine.json"))
	if err != nil {
		return Spec{}, fmt.Errorf("read machine: %w", err)
	}
	var s Spec
	if err := json.Unmarshal(text, &s); err != nil {
		return Spec{}, fmt.Errorf("read machine %s: %w", dir, err)
	}
	if s.Dir != dir {
		return Spec{}, errors.New("read machine: " + dir + " was moved from " + s.Dir)
	}
	return s, s.validate()
}
