// Package archive writes container images of static programs as archives that a container runtime imports: the programs in
// /usr/local/bin and nothing else. The same programs give the same bytes. It is safe for concurrent use.
package archive

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Image describes an image.
type Image struct {
	// Name is the whole reference, with tag. Required.
	Name string
	// Programs are the files of static programs; the first is what the image starts. Required.
	Programs []string
}

// Write writes the image as a docker archive.
func Write(file string, image Image) error {
	if len(image.Programs) == 0 {
		return fmt.Errorf("write image %s: no programs", image.Name)
	}
	ref, err := name.NewTag(image.Name, name.StrictValidation)
	if err != nil {
		return fmt.Errorf("write image: %w", err)
	}
	img, err := build(image.Programs)
	if err != nil {
		return fmt.Errorf("write image %s: %w", image.Name, err)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	if err := tarball.WriteToFile(file, ref, img); err != nil {
		return fmt.Errorf("write image %s: %w", image.Name, err)
	}
	return nil
}

func build(programs []string) (v1.Image, error) {
	content, err := layer(programs)
	if err != nil {
		return nil, err
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil }, tarball.WithCompressionLevel(1))
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.Architecture, config.OS = runtime.GOARCH, "linux"
	config.Config.Entrypoint = []string{"/usr/local/bin/" + filepath.Base(programs[0])}
	config.Config.Env = []string{"PATH=/usr/local/bin"}
	return mutate.ConfigFile(img, config)
}

func layer(programs []string) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, program := range programs {
		content, err := os.ReadFile(program)
		if err != nil {
			return nil, err
		}
		header := &tar.Header{Name: "usr/local/bin/" + filepath.Base(program), Mode: 0o755, Size: int64(len(content)), ModTime: time.Unix(0, 0)}
		if err := w.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := w.Write(content); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), w.Close()
}
