package deploy

import (
	"embed"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// The README keeps the pattern from being empty in a fresh clone.
//
//go:embed crds
var crdFiles embed.FS

const crdDir = "crds"

// ErrNoCRDs says that this program was built without the definitions.
var ErrNoCRDs = errors.New("this program was built without the custom resource definitions: build it with make, or run make generate first")

// BundleAnnotation carries the version of the module that a definition comes from, where the module's own definitions name
// none.
const BundleAnnotation = "culvert.io/bundle-version"

// CRDs returns the definitions, ordered by name, or ErrNoCRDs.
func CRDs() ([]*unstructured.Unstructured, error) {
	entries, err := crdFiles.ReadDir(crdDir)
	if err != nil {
		return nil, fmt.Errorf("read definitions: %w", err)
	}
	var crds []*unstructured.Unstructured
	for _, entry := range entries {
		if !strings.HasSuffix(entry.Name(), ".yaml") {
			continue
		}
		data, err := crdFiles.ReadFile(path.Join(crdDir, entry.Name()))
		if err != nil {
			return nil, fmt.Errorf("read definitions: %w", err)
		}
		crd := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(data, &crd.Object); err != nil {
			return nil, fmt.Errorf("read definition %s: %w", entry.Name(), err)
		}
		crds = append(crds, crd)
	}
	if len(crds) == 0 {
		return nil, ErrNoCRDs
	}
	slices.SortFunc(crds, func(a, b *unstructured.Unstructured) int { return strings.Compare(a.GetName(), b.GetName()) })
	return crds, nil
}

// WriteCRDs writes the definitions as YAML documents, or returns ErrNoCRDs.
func WriteCRDs(w io.Writer) error {
	crds, err := CRDs()
	if err != nil {
		return err
	}
	for _, crd := range crds {
		data, err := yaml.Marshal(crd.Object)
		if err != nil {
			return fmt.Errorf("write definition %s: %w", crd.GetName(), err)
		}
		if _, err := fmt.Fprintf(w, "---\n%s", data); err != nil {
			return err
		}
	}
	return nil
}
