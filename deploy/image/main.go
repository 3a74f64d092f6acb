// Command image writes the container image: static programs on nothing (scratch), with a bill of materials.
//
//	go run ./deploy/image -out bin/culvert-image.tar -version v1 bin/culvert bin/culvert-node ...
//
// The file is an OCI image layout in a tar that is a docker-archive at the same time, so that `ctr images import`,
// `docker load`, `podman load`, `kind load image-archive` and skopeo take it. The same programs give the same bytes: times
// are those of the commit, owners are root, order is by name. The first of them is what runs when a container names none.
// Nothing is pulled or pushed.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

func main() {
	var o options
	flag.StringVar(&o.out, "out", "bin/culvert-image.tar", "image to write; the bill of materials goes beside it (.spdx.json)")
	flag.StringVar(&o.name, "name", "culvert", "repository of the image")
	flag.StringVar(&o.version, "version", "", "tag of the image")
	flag.Parse()
	o.programs = flag.Args()
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

type options struct {
	out, name, version string
	programs           []string
}

// A tag as the distribution specification has it.
var tagForm = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)

func run(o options) error {
	switch {
	case len(o.programs) == 0:
		return errors.New("no programs given")
	case !tagForm.MatchString(o.version):
		return fmt.Errorf("-version %q cannot be a tag", o.version)
	case o.version == "latest":
		return errors.New("-version latest says nothing: give a version")
	}
	programs, err := readPrograms(o.programs)
	if err != nil {
		return err
	}
	bom, err := billOfMaterials(o, programs)
	if err != nil {
		return fmt.Errorf("make bill of materials: %w", err)
	}
	img, err := build(o, programs, bom)
	if err != nil {
		return fmt.Errorf("build image: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(o.out), 0o755); err != nil {
		return err
	}
	if err := writeArchive(o, img); err != nil {
		return fmt.Errorf("write %s: %w", o.out, err)
	}
	beside := strings.TrimSuffix(o.out, ".tar") + ".spdx.json"
	if err := os.WriteFile(beside, bom, 0o644); err != nil {
		return fmt.Errorf("write bill of materials: %w", err)
	}
	digest, err := img.Digest()
	if err != nil {
		return err
	}
	fmt.Printf("wrote %s: %s:%s %s; %s\n", o.out, o.name, o.version, digest, beside)
	return nil
}
