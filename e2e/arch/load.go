package arch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Root returns the directory of the module that holds the current directory.
func Root(ctx context.Context) (string, error) {
	out, err := goCommand(ctx, ".", "env", "GOMOD")
	if err != nil {
		return "", err
	}
	mod := strings.TrimSpace(string(out))
	if mod == "" || mod == os.DevNull {
		return "", errors.New("find module: not inside one")
	}
	return filepath.Dir(mod), nil
}

// Load asks the go command about the packages that match the patterns, seen from dir. A package that does not build is
// reported as far as its imports could be read, so that a forbidden import is found even when it cannot be resolved.
func Load(ctx context.Context, dir string, patterns ...string) ([]Package, error) {
	args := append([]string{
		"list", "-e", "-tags=grpcnotrace", // as make build does
		"-json=ImportPath,Name,Dir,Standard,GoFiles,SFiles,TestGoFiles,XTestGoFiles,Imports,TestImports,XTestImports,Deps",
	}, patterns...)
	out, err := goCommand(ctx, dir, args...)
	if err != nil {
		return nil, err
	}
	return decode(bytes.NewReader(out))
}

func decode(r io.Reader) ([]Package, error) {
	var pkgs []Package
	for dec := json.NewDecoder(r); ; {
		var p Package
		switch err := dec.Decode(&p); {
		case errors.Is(err, io.EOF):
			return pkgs, nil
		case err != nil:
			return nil, fmt.Errorf("decode package list: %w", err)
		}
		if len(p.GoFiles)+len(p.TestGoFiles)+len(p.XTestGoFiles) > 0 {
			pkgs = append(pkgs, p)
		}
	}
}

func goCommand(ctx context.Context, dir string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	// The product runs on Linux; the table describes that build whatever the developer's machine is.
	cmd.Env = append(os.Environ(), "GOOS=linux", "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("run go %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}
