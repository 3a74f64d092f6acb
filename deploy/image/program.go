package main

import (
	"cmp"
	"debug/buildinfo"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// program is one static executable and what the compiler wrote into it.
type program struct {
	name string
	data []byte
	info *buildinfo.BuildInfo
}

// setting returns a setting of the build, or "".
func (p program) setting(key string) string {
	for _, s := range p.info.Settings {
		if s.Key == key {
			return s.Value
		}
	}
	return ""
}

// readPrograms reads the executables, ordered by name. All must be static, made by Go for one architecture of Linux.
func readPrograms(paths []string) ([]program, error) {
	var programs []program
	for _, path := range paths {
		p, err := readProgram(path)
		if err != nil {
			return nil, fmt.Errorf("read program %s: %w", path, err)
		}
		programs = append(programs, p)
	}
	slices.SortFunc(programs, func(a, b program) int { return cmp.Compare(a.name, b.name) })
	for i, p := range programs {
		switch {
		case i > 0 && p.name == programs[i-1].name:
			return nil, fmt.Errorf("program %s is given twice", p.name)
		case p.setting("GOARCH") != programs[0].setting("GOARCH"):
			return nil, fmt.Errorf("%s is for %s, %s is for %s", p.name, p.setting("GOARCH"), programs[0].name, programs[0].setting("GOARCH"))
		}
	}
	return programs, nil
}

func readProgram(path string) (program, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return program{}, err
	}
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return program{}, err
	}
	p := program{name: filepath.Base(path), data: data, info: info}
	if goos := p.setting("GOOS"); goos != "linux" {
		return program{}, fmt.Errorf("is for %s, not linux", goos)
	}
	file, err := elf.Open(path)
	if err != nil {
		return program{}, err
	}
	defer func() { _ = file.Close() }()
	for _, segment := range file.Progs {
		if segment.Type == elf.PT_INTERP {
			return program{}, errors.New("is not static: there is no loader in the image (build with CGO_ENABLED=0)")
		}
	}
	return p, nil
}

// commitTime is when the programs' commit was made, so that an image says something true and stays the same. Without
// version control it is 1970.
func commitTime(programs []program) time.Time {
	newest := time.Unix(0, 0).UTC()
	for _, p := range programs {
		if t, err := time.Parse(time.RFC3339, p.setting("vcs.time")); err == nil && t.After(newest) {
			newest = t.UTC()
		}
	}
	return newest
}
