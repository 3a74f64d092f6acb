package deploy

import (
	"embed"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
)

//go:embed all:chart/culvert
var chartFiles embed.FS

const (
	chartDir    = "chart/culvert"
	profilesDir = chartDir + "/profiles"
)

// Version is what the chart names when a program has no version of its own (built without the Makefile).
const Version = "0.1.0"

// Chart returns the chart. Programs is the version of the programs that it is to install, which becomes the default tag
// of the image; empty or "unknown" keeps the chart's own.
func Chart(programs string) (*chart.Chart, error) {
	var files []*loader.BufferedFile
	err := fs.WalkDir(chartFiles, chartDir, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := chartFiles.ReadFile(name)
		if err != nil {
			return err
		}
		files = append(files, &loader.BufferedFile{Name: strings.TrimPrefix(name, chartDir+"/"), Data: data})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read chart: %w", err)
	}
	c, err := loader.LoadFiles(files)
	if err != nil {
		return nil, fmt.Errorf("load chart: %w", err)
	}
	if programs != "" && programs != "unknown" {
		c.Metadata.AppVersion = programs
	}
	return c, nil
}

// Profiles returns the names of the distributions that [Profile] knows, sorted.
func Profiles() []string {
	entries, err := chartFiles.ReadDir(profilesDir)
	if err != nil {
		return nil // the directory is embedded: it is there
	}
	var names []string
	for _, entry := range entries {
		if name, ok := strings.CutSuffix(entry.Name(), ".yaml"); ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Profile returns the values that fit a distribution. The error for a name that is not there lists those that are.
func Profile(name string) (map[string]any, error) {
	if !slices.Contains(Profiles(), name) {
		return nil, fmt.Errorf("unknown profile %q: there are %s", name, strings.Join(Profiles(), ", "))
	}
	data, err := chartFiles.ReadFile(path.Join(profilesDir, name+".yaml"))
	if err != nil {
		return nil, fmt.Errorf("read profile %s: %w", name, err)
	}
	values, err := chartutil.ReadValues(data)
	if err != nil {
		return nil, fmt.Errorf("read profile %s: %w", name, err)
	}
	return values, nil
}
