package main

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"io"
	"os"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// blob is one file of the layout's blobs directory.
type blob struct {
	hash v1.Hash
	data []byte
}

func (b blob) path() string { return "blobs/" + b.hash.Algorithm + "/" + b.hash.Hex }

// dockerManifest is an entry of a docker-archive's manifest.json; here it points into the OCI layout's blobs.
type dockerManifest struct {
	Config   string   `json:"Config"`
	RepoTags []string `json:"RepoTags"`
	Layers   []string `json:"Layers"`
}

// writeArchive writes the image to a file beside the target and renames it, so that no half an image stays.
func writeArchive(o options, img v1.Image) (err error) {
	f, err := os.CreateTemp(dirOf(o.out), ".image-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	if err := archive(f, o, img); err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), o.out)
}

func dirOf(path string) string {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i+1]
	}
	return "."
}

// archive writes layout, indexes and blobs.
func archive(out io.Writer, o options, img v1.Image) error {
	blobs, layers, err := blobsOf(img)
	if err != nil {
		return err
	}
	manifest, config := blobs[0], blobs[1]
	index, err := json.Marshal(indexOf(o, manifest))
	if err != nil {
		return err
	}
	docker := dockerManifest{Config: config.path(), RepoTags: []string{o.name + ":" + o.version}}
	for _, l := range layers {
		docker.Layers = append(docker.Layers, l.path())
	}
	dockerJSON, err := json.Marshal([]dockerManifest{docker})
	if err != nil {
		return err
	}
	w := tar.NewWriter(out)
	files := []struct {
		name string
		data []byte
	}{{"oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)}, {"index.json", index}, {"manifest.json", dockerJSON}}
	for _, f := range files {
		if err := addFile(w, f.name, 0o644, f.data); err != nil {
			return err
		}
	}
	slices.SortFunc(blobs, func(a, b blob) int { return strings.Compare(a.path(), b.path()) })
	for _, b := range blobs {
		if err := addFile(w, b.path(), 0o644, b.data); err != nil {
			return err
		}
	}
	return w.Close()
}

// indexOf is the layout's index. containerd takes the name from its own annotation as it stands, so that is the full one
// that kubelet asks for; ref.name is the tag, as the OCI layout has it.
func indexOf(o options, manifest blob) v1.IndexManifest {
	full := o.name
	if !strings.Contains(full, "/") {
		full = "docker.io/library/" + full
	}
	return v1.IndexManifest{
		SchemaVersion: 2,
		MediaType:     types.OCIImageIndex,
		Manifests: []v1.Descriptor{{
			MediaType: types.OCIManifestSchema1,
			Size:      int64(len(manifest.data)),
			Digest:    manifest.hash,
			Annotations: map[string]string{
				"io.containerd.image.name":          full + ":" + o.version,
				"org.opencontainers.image.ref.name": o.version,
			},
		}},
	}
}

// blobsOf returns all blobs, the manifest first and the configuration second, and the layers among them.
func blobsOf(img v1.Image) (all, layers []blob, err error) {
	manifest, err := img.RawManifest()
	if err != nil {
		return nil, nil, err
	}
	digest, err := img.Digest()
	if err != nil {
		return nil, nil, err
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return nil, nil, err
	}
	configName, err := img.ConfigName()
	if err != nil {
		return nil, nil, err
	}
	list, err := img.Layers()
	if err != nil {
		return nil, nil, err
	}
	for _, l := range list {
		b, err := layerBlob(l)
		if err != nil {
			return nil, nil, err
		}
		layers = append(layers, b)
	}
	all = append([]blob{{digest, manifest}, {configName, config}}, layers...)
	return all, layers, nil
}

func layerBlob(l v1.Layer) (blob, error) {
	hash, err := l.Digest()
	if err != nil {
		return blob{}, err
	}
	r, err := l.Compressed()
	if err != nil {
		return blob{}, err
	}
	data, err := io.ReadAll(r)
	return blob{hash, data}, errors.Join(err, r.Close())
}
