package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/podset"
)

// podFileInterval is how often the list of pods is looked at.
const podFileInterval = 250 * time.Millisecond

// podFile keeps a pod set equal to a YAML list of {uid, name, namespace, serviceAccount, netns: path}. A list that is at
// fault is refused as a whole, and the last good one stays in force.
type podFile struct {
	path string
	set  *podset.Set
	log  *slog.Logger

	content []byte
}

// podKeys is what a list has of each pod, for faults.
const podKeys = "{uid, name, namespace, serviceAccount, netns}"

type listedPod struct {
	UID            string `yaml:"uid"`
	Name           string `yaml:"name"`
	Namespace      string `yaml:"namespace"`
	ServiceAccount string `yaml:"serviceAccount"`
	NetNS          string `yaml:"netns"`

	line int
}

// UnmarshalYAML remembers the line, for faults.
func (p *listedPod) UnmarshalYAML(node *yaml.Node) error {
	type plain listedPod
	if node.Kind != yaml.MappingNode {
		return fmt.Errorf("line %d: want a pod %s", node.Line, podKeys)
	}
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		if value.Kind == yaml.AliasNode {
			value = value.Alias
		}
		switch key.Value {
		case "uid", "name", "namespace", "serviceAccount", "netns":
			if value.Kind != yaml.ScalarNode {
				return fmt.Errorf("line %d: %s: want a text", key.Line, key.Value)
			}
		default:
			return fmt.Errorf("line %d: unknown key %.40q: want a pod %s", key.Line, key.Value, podKeys)
		}
	}
	if err := node.Decode((*plain)(p)); err != nil {
		return err
	}
	p.line = node.Line
	return nil
}

// decodePods reads a list; all its faults are reported, each with file and line.
func decodePods(name string, content []byte) ([]listedPod, error) {
	var list []listedPod
	var doc yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(content))
	if err := dec.Decode(&doc); err != nil && !errors.Is(err, io.EOF) {
		return nil, placed(name, err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: has more than one document", name)
	}
	if len(doc.Content) > 0 {
		if root := doc.Content[0]; root.Kind != yaml.SequenceNode && root.Tag != "!!null" {
			return nil, fmt.Errorf("%s:%d: want a list of pods %s", name, root.Line, podKeys)
		}
		if err := doc.Decode(&list); err != nil {
			return nil, placed(name, err)
		}
	}
	var faults []error
	byUID, byNetNS := map[string]int{}, map[string]int{}
	for _, p := range list {
		fault := func(format string, args ...any) {
			faults = append(faults, fmt.Errorf("%s:%d: "+format, append([]any{name, p.line}, args...)...))
		}
		for _, f := range []struct{ key, value string }{{"uid", p.UID}, {"name", p.Name}, {"namespace", p.Namespace}, {"serviceAccount", p.ServiceAccount}, {"netns", p.NetNS}} {
			if f.value == "" {
				fault("pod has no %s", f.key)
			}
		}
		if line, twice := byUID[p.UID]; twice && p.UID != "" {
			fault("uid %q stands at line %d already", p.UID, line)
		}
		if line, twice := byNetNS[p.NetNS]; twice && p.NetNS != "" {
			fault("netns %q stands at line %d already", p.NetNS, line)
		}
		byUID[p.UID], byNetNS[p.NetNS] = p.line, p.line
	}
	return list, errors.Join(faults...)
}

// placed gives each fault that yaml reports with its line the form FILE:LINE: REASON.
func placed(name string, err error) error {
	texts := []string{err.Error()}
	if te, ok := errors.AsType[*yaml.TypeError](err); ok {
		texts = te.Errors
	}
	var faults []error
	for _, text := range texts {
		text = strings.TrimPrefix(text, "yaml: ")
		line, reason, ok := strings.Cut(strings.TrimPrefix(text, "line "), ": ")
		if _, err := strconv.Atoi(line); !ok || err != nil {
			line, reason = "1", text
		}
		faults = append(faults, fmt.Errorf("%s:%s: %s", name, line, reason))
	}
	return errors.Join(faults...)
}

// load applies the list if it has changed.
func (f *podFile) load() error {
	content, err := os.ReadFile(f.path)
	if err != nil {
		return fmt.Errorf("read pods: %w", err)
	}
	if f.content != nil && bytes.Equal(content, f.content) {
		return nil
	}
	f.content = content
	list, err := decodePods(f.path, content)
	if err != nil {
		return err
	}
	var pods []podset.Pod
	var faults []error
	for _, p := range list {
		pod := podset.Pod{UID: p.UID, Name: p.Name, Namespace: p.Namespace, ServiceAccount: p.ServiceAccount}
		if pod.NS, err = netns.Open(p.NetNS); err != nil {
			// That pod alone; without a namespace a pod that is served already stays.
			faults = append(faults, fmt.Errorf("%s:%d: pod %s/%s: %w", f.path, p.line, p.Namespace, p.Name, err))
			f.content = nil // look again: the namespace may come later
		}
		pods = append(pods, pod)
	}
	return errors.Join(append(faults, f.set.Sync(pods))...)
}

// Run follows the file until ctx ends.
func (f *podFile) Run(ctx context.Context) error {
	tick := time.NewTicker(podFileInterval)
	defer tick.Stop()
	last := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		err := f.load()
		switch {
		case err == nil:
			last = ""
		case err.Error() != last:
			last = err.Error()
			f.log.Warn("faults in the list of pods", "error", err)
		}
	}
}
