package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	k8syaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/culvert-mesh/culvert/deploy"
)

// source is a module that brings definitions.
type source struct {
	module string
	files  string // pattern inside the module
	// only names the definitions to take; nil takes all. A definition whose resource nothing here reads would only make
	// its users believe that it is enforced.
	only []string
}

func sources() []source {
	return []source{
		{module: "sigs.k8s.io/gateway-api", files: "config/crd/standard/*.yaml"},
		{module: "sigs.k8s.io/network-policy-api", files: "config/crd/standard/*.yaml"},
		{module: "istio.io/api", files: "kubernetes/customresourcedefinitions.gen.yaml", only: []string{
			"authorizationpolicies.security.istio.io",
			"destinationrules.networking.istio.io",
			"gateways.networking.istio.io",
			"peerauthentications.security.istio.io",
			"requestauthentications.security.istio.io",
			"serviceentries.networking.istio.io",
			"virtualservices.networking.istio.io",
			"workloadentries.networking.istio.io",
		}},
	}
}

// module is what `go mod download -json` says.
type module struct{ Path, Version, Dir, Error string }

// writeCRDs replaces the definitions in dir/crds.
func writeCRDs(dir string) error {
	out := filepath.Join(dir, "crds")
	files := map[string][]byte{}
	for _, s := range sources() {
		m, err := download(s.module)
		if err != nil {
			return err
		}
		if err := s.extract(m, files); err != nil {
			return fmt.Errorf("extract definitions of %s: %w", s.module, err)
		}
	}
	old, err := filepath.Glob(filepath.Join(out, "*.yaml"))
	if err != nil {
		return err
	}
	for _, name := range old {
		if _, stays := files[filepath.Base(name)]; stays {
			continue
		}
		if err := os.Remove(name); err != nil {
			return fmt.Errorf("remove old definition: %w", err)
		}
	}
	for name, data := range files {
		if err := writeFile(filepath.Join(out, name), data); err != nil {
			return err
		}
	}
	return nil
}

// download brings a module, in the version of go.mod, into the module cache.
func download(name string) (module, error) {
	cmd := exec.Command("go", "mod", "download", "-json", name)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, runErr := cmd.Output()
	var m module
	if err := json.Unmarshal(out, &m); err != nil {
		return m, fmt.Errorf("download module %s: %w: %s", name, errors.Join(runErr, err), stderr.String())
	}
	if m.Error != "" {
		return m, fmt.Errorf("download module %s: %s", name, m.Error)
	}
	return m, nil
}

// extract adds the definitions of a module to files, one each, annotated with the version that they come from.
func (s source) extract(m module, files map[string][]byte) error {
	paths, err := filepath.Glob(filepath.Join(m.Dir, filepath.FromSlash(s.files)))
	if err != nil {
		return err
	}
	left := slices.Clone(s.only)
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		crds, err := readCRDs(f)
		f.Close()
		if err != nil {
			return fmt.Errorf("read %s: %w", filepath.Base(path), err)
		}
		for _, crd := range crds {
			name := crd.GetName()
			if s.only != nil && !slices.Contains(s.only, name) {
				continue
			}
			left = slices.DeleteFunc(left, func(n string) bool { return n == name })
			if files[name+".yaml"], err = encode(crd, m); err != nil {
				return fmt.Errorf("write %s: %w", name, err)
			}
		}
	}
	if len(left) > 0 {
		return fmt.Errorf("not there: %s", strings.Join(left, ", "))
	}
	return nil
}

// readCRDs returns the definitions among the documents of a file.
func readCRDs(r io.Reader) ([]*unstructured.Unstructured, error) {
	var crds []*unstructured.Unstructured
	decoder := k8syaml.NewYAMLOrJSONDecoder(r, 1<<16)
	for {
		object := &unstructured.Unstructured{}
		err := decoder.Decode(&object.Object)
		switch {
		case errors.Is(err, io.EOF):
			return crds, nil
		case err != nil:
			return nil, err
		case object.GetKind() == "CustomResourceDefinition":
			crds = append(crds, object)
		}
	}
}

func encode(crd *unstructured.Unstructured, m module) ([]byte, error) {
	annotations := crd.GetAnnotations()
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[deploy.BundleAnnotation] = m.Version
	crd.SetAnnotations(annotations)
	// Helm's and Istio's own marks say who manages an object; these are not theirs.
	crd.SetLabels(nil)
	unstructured.RemoveNestedField(crd.Object, "status")
	data, err := yaml.Marshal(crd.Object)
	if err != nil {
		return nil, err
	}
	return append(fmt.Appendf(nil, "# From %s %s.\n", m.Path, m.Version), data...), nil
}

// writeFile writes only what differs, so that builds that embed it stay cached.
func writeFile(path string, data []byte) error {
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, data) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o644)
}
