package main

import (
	"archive/tar"
	"bytes"
	"io"
	"path"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const (
	binDir = "usr/local/bin"
	bomDir = "usr/share/doc/culvert"
	// nobody is who a container runs as unless its pod says otherwise (the agent's does): a user that owns nothing.
	nobody = "65532:65532"
)

// build makes the image of one layer.
func build(o options, programs []program, bom []byte) (v1.Image, error) {
	layer, err := makeLayer(programs, bom)
	if err != nil {
		return nil, err
	}
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	if img, err = mutate.AppendLayers(img, layer); err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	created := commitTime(programs)
	config.OS, config.Architecture = "linux", programs[0].setting("GOARCH")
	config.Created = v1.Time{Time: created}
	config.History = []v1.History{{Created: v1.Time{Time: created}, CreatedBy: "culvert deploy/image"}}
	config.Config = v1.Config{
		User:       nobody,
		Env:        []string{"PATH=/" + binDir},
		Entrypoint: []string{"/" + binDir + "/" + programs[0].name},
		WorkingDir: "/",
		Labels: map[string]string{
			"org.opencontainers.image.title":    path.Base(o.name),
			"org.opencontainers.image.version":  o.version,
			"org.opencontainers.image.revision": programs[0].setting("vcs.revision"),
			"org.opencontainers.image.licenses": "Apache-2.0",
			"org.opencontainers.image.source":   "https://" + programs[0].info.Main.Path,
		},
	}
	return mutate.ConfigFile(img, config)
}

// makeLayer packs the programs and the bill of materials.
func makeLayer(programs []program, bom []byte) (v1.Layer, error) {
	var content bytes.Buffer
	w := tar.NewWriter(&content)
	for _, dir := range []string{"usr/", "usr/local/", binDir + "/", "usr/share/", "usr/share/doc/", bomDir + "/"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755, Format: tar.FormatUSTAR}); err != nil {
			return nil, err
		}
	}
	for _, p := range programs {
		if err := addFile(w, binDir+"/"+p.name, 0o755, p.data); err != nil {
			return nil, err
		}
	}
	if err := addFile(w, bomDir+"/sbom.spdx.json", 0o644, bom); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	opener := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content.Bytes())), nil }
	return tarball.LayerFromOpener(opener, tarball.WithMediaType(types.OCILayer), tarball.WithCompressedCaching)
}

func addFile(w *tar.Writer, name string, mode int64, data []byte) error {
	header := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(data)), Format: tar.FormatUSTAR}
	if err := w.WriteHeader(header); err != nil {
		return err
	}
	_, err := w.Write(data)
	return err
}
