// Package objects gathers Kubernetes objects for commands that judge many of them at once: from files, as a person keeps
// them, or from a cluster, as it is.
//
// What the objects mean is left to the callers. Both ways give the same form, so that a command has one way of judging.
// The functions keep nothing and may be called concurrently.
package objects

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	k8syaml "k8s.io/apimachinery/pkg/util/yaml"

	"github.com/culvert-mesh/culvert/cmd/internal/access"
)

const (
	// maxFile bounds one file: a dump of a big cluster is some tens of megabytes.
	maxFile = 256 << 20
	// page is how many objects of a kind are asked for at once.
	page = 500
	// Stdin is the path that stands for the standard input.
	Stdin = "-"
)

// Document is one document of a file.
type Document struct {
	// File is the path that it was read from.
	File string
	// Object is its content, a Kubernetes object or whatever else the file holds.
	Object map[string]any
}

// Files reads the objects of files and directories (of which files that end in .yaml, .yml or .json, and those of their
// directories, in the order of their names); "-" is stdin. A file may hold several documents and Lists. A document that
// is no Kubernetes object is an error.
func Files(paths []string, stdin io.Reader) ([]*unstructured.Unstructured, error) {
	docs, err := Documents(paths, stdin)
	if err != nil {
		return nil, err
	}
	var out []*unstructured.Unstructured
	for _, d := range docs {
		if !d.IsObject() {
			return nil, fmt.Errorf("read %s: a document is no Kubernetes object: it has no apiVersion and kind", d.File)
		}
		out = append(out, &unstructured.Unstructured{Object: d.Object})
	}
	return out, nil
}

// IsObject reports whether the document is a Kubernetes object.
func (d Document) IsObject() bool {
	u := unstructured.Unstructured{Object: d.Object}
	return u.GetAPIVersion() != "" && u.GetKind() != ""
}

// Documents does the same without asking what the documents are. Lists of Kubernetes are taken apart, empty documents
// left out.
func Documents(paths []string, stdin io.Reader) ([]Document, error) {
	files, err := Expand(paths)
	if err != nil {
		return nil, err
	}
	var out []Document
	for _, file := range files {
		docs, err := readFile(file, stdin)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", file, err)
		}
		out = append(out, docs...)
	}
	return out, nil
}

// Expand returns the files that paths stand for, in the order in which they are read.
func Expand(paths []string) ([]string, error) {
	var out []string
	for _, path := range paths {
		files, err := expand(path)
		if err != nil {
			return nil, err
		}
		out = append(out, files...)
	}
	return out, nil
}

// expand returns the files that a path stands for.
func expand(path string) ([]string, error) {
	if path == Stdin {
		return []string{path}, nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	var files []string
	err = filepath.WalkDir(path, func(file string, entry fs.DirEntry, err error) error {
		switch strings.ToLower(filepath.Ext(file)) {
		case ".yaml", ".yml", ".json":
			if err == nil && !entry.IsDir() {
				files = append(files, file)
			}
		}
		return err
	})
	return files, err
}

func readFile(file string, stdin io.Reader) ([]Document, error) {
	if file == Stdin {
		return Read(file, stdin)
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return Read(file, f)
}

// Read reads the documents of one stream of YAML or JSON. Its errors do not name the file.
func Read(file string, r io.Reader) ([]Document, error) {
	limited := &io.LimitedReader{R: r, N: maxFile}
	decoder := k8syaml.NewYAMLOrJSONDecoder(limited, 1<<16)
	var out []Document
	for {
		var raw any
		err := decoder.Decode(&raw)
		switch {
		case errors.Is(err, io.EOF) && limited.N > 0:
			return out, nil
		case limited.N <= 0:
			return nil, fmt.Errorf("it is larger than %d MiB", maxFile>>20)
		case err != nil:
			return nil, err
		case raw == nil:
			continue
		}
		doc, ok := normalise(raw).(map[string]any)
		if !ok {
			return nil, errors.New("a document is no mapping")
		}
		if out, err = unpack(out, Document{file, doc}); err != nil {
			return nil, err
		}
	}
}

// normalise gives numbers the types that Kubernetes' objects have: int64 where they are whole.
func normalise(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			v[k] = normalise(e)
		}
	case []any:
		for i, e := range v {
			v[i] = normalise(e)
		}
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		f, _ := v.Float64()
		return f
	case float64:
		if n := int64(v); float64(n) == v {
			return n
		}
	case int:
		return int64(v)
	}
	return v
}

// unpack appends a document, or the items of a List.
func unpack(out []Document, d Document) ([]Document, error) {
	kind, _ := d.Object["kind"].(string)
	items, ok := d.Object["items"].([]any)
	if !ok || !strings.HasSuffix(kind, "List") {
		return append(out, d), nil
	}
	for _, item := range items {
		o, ok := item.(map[string]any)
		if !ok {
			return nil, fmt.Errorf("an item of a %s is no mapping", kind)
		}
		out = append(out, Document{d.File, o})
	}
	return out, nil
}

// Cluster lists all objects of the resources. A resource that the cluster does not define has none.
func Cluster(ctx context.Context, a *access.Access, resources []schema.GroupVersionResource) ([]*unstructured.Unstructured, error) {
	var out []*unstructured.Unstructured
	for _, r := range resources {
		more, err := list(ctx, a, r)
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", r.GroupResource(), a.Explain(err))
		}
		out = append(out, more...)
	}
	return out, nil
}

func list(ctx context.Context, a *access.Access, r schema.GroupVersionResource) ([]*unstructured.Unstructured, error) {
	var out []*unstructured.Unstructured
	options := metav1.ListOptions{Limit: page}
	for {
		l, err := a.Dynamic.Resource(r).List(ctx, options)
		switch {
		case apierrors.IsNotFound(err):
			return nil, nil
		case apierrors.IsResourceExpired(err) && options.Continue != "":
			out, options.Continue = nil, "" // it took too long: begin again
			continue
		case err != nil:
			return nil, err
		}
		out = slices.Grow(out, len(l.Items))
		for i := range l.Items {
			l.Items[i].SetManagedFields(nil) // as large as the rest, and nobody asks for it
			out = append(out, &l.Items[i])
		}
		if options.Continue = l.GetContinue(); options.Continue == "" {
			return out, nil
		}
	}
}
