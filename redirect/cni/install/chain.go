package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/culvert-mesh/culvert/redirect/cni"
)

// defaultName is that of a network whose configuration has none; Istio's installer
// uses the same.
const defaultName = "k8s-pod-network"

// chain is the text of a list of plugins, with the places of its elements.
type chain struct {
	text    []byte
	name    string
	version string   // "cniVersion"
	more    []string // "cniVersions"
	plugins []element
}

// element is one plugin of a chain: text[start:end].
type element struct {
	start, end int
	kind       string
}

// parseChain reads a list (".conflist"). Errors name line and column.
func parseChain(text []byte) (chain, error) {
	if err := checkJSON(text); err != nil {
		return chain{}, err
	}
	c := chain{text: text}
	d := json.NewDecoder(bytes.NewReader(text))
	if t, _ := d.Token(); t != json.Delim('{') {
		return chain{}, errors.New("line 1: not a JSON object")
	}
	seen := map[string]int{}
	for d.More() {
		t, _ := d.Token()
		key, _ := t.(string)
		seen[key]++
		var err error
		switch key {
		case "name":
			err = d.Decode(&c.name)
		case "cniVersion":
			err = d.Decode(&c.version)
		case "cniVersions":
			err = d.Decode(&c.more)
		case "plugins":
			c.plugins, err = elements(d, text)
		default:
			var skipped json.RawMessage
			err, seen[key] = d.Decode(&skipped), 0
		}
		if err == nil && seen[key] > 1 { // runtimes take the last one, others may not
			err = errors.New("appears twice")
		}
		if err != nil {
			return chain{}, fmt.Errorf("%s: %.40q: %w", place(text, d.InputOffset()), key, err)
		}
	}
	return c, c.check()
}

// elements reads the array that comes next.
func elements(d *json.Decoder, text []byte) ([]element, error) {
	if t, err := d.Token(); err != nil || t != json.Delim('[') {
		return nil, errors.New("not an array")
	}
	var all []element
	for d.More() {
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return nil, err
		}
		e := element{end: int(d.InputOffset())}
		e.start = e.end - len(raw)
		if e.start < 0 || !bytes.Equal(text[e.start:e.end], raw) {
			return nil, errors.New("place of a plugin cannot be told")
		}
		var plugin struct {
			Type string `json:"type"`
		}
		if err := json.Unmarshal(raw, &plugin); err != nil {
			return nil, fmt.Errorf("plugin %d: %w", len(all)+1, err)
		}
		if plugin.Type == "" {
			return nil, fmt.Errorf("plugin %d has no type", len(all)+1)
		}
		e.kind = plugin.Type
		all = append(all, e)
	}
	_, err := d.Token()
	return all, err
}

func (c chain) check() error {
	switch {
	case c.name == "":
		return errors.New("network has no name")
	case len(c.plugins) == 0:
		return errors.New("list has no plugins")
	}
	return nil
}

// kinds returns the types of the plugins in their order.
func (c chain) kinds() []string {
	kinds := make([]string, 0, len(c.plugins))
	for _, p := range c.plugins {
		kinds = append(kinds, p.kind)
	}
	return kinds
}

// with returns the list with entry as its last plugin, and as the only one of its
// kind. The text is the same if that is so already.
func (c chain) with(entry []byte) ([]byte, error) {
	n := len(c.plugins) - 1
	if c.plugins[n].kind == cni.Type && slices.Index(c.kinds(), cni.Type) == n && same(c.text[c.plugins[n].start:c.plugins[n].end], entry) {
		return c.text, nil
	}
	text, err := c.without()
	if err != nil {
		return nil, err
	}
	rest, err := parseChain(text)
	if err != nil {
		return nil, fmt.Errorf("nothing to be chained to: %w", err)
	}
	last := rest.plugins[len(rest.plugins)-1]
	space := rest.before(len(rest.plugins) - 1)
	return slices.Concat(text[:last.end], []byte(","), space, format(entry, space), text[last.end:]), nil
}

// without returns the list without our plugin. It may be empty then.
func (c chain) without() ([]byte, error) {
	text := c.text
	kept := slices.Clone(c.plugins)
	for n := len(kept) - 1; n >= 0; n-- {
		if kept[n].kind != cni.Type {
			continue
		}
		from, to := kept[n].start, kept[n].end
		switch {
		case n > 0: // with the comma before it
			from = kept[n-1].end
		case len(kept) > 1: // those behind it were cut or stay; the offsets before them are still right
			to = kept[1].start
		}
		text = slices.Concat(text[:from], text[to:])
		shift := to - from
		kept = slices.Delete(kept, n, n+1)
		for m := n; m < len(kept); m++ {
			kept[m].start -= shift
			kept[m].end -= shift
		}
	}
	if !json.Valid(text) {
		return nil, errors.New("cutting the entry does not leave JSON")
	}
	return text, nil
}

// before returns the white space before a plugin.
func (c chain) before(n int) []byte {
	start := c.plugins[n].start
	from := start
	for from > 0 && strings.IndexByte(" \t\r\n", c.text[from-1]) >= 0 {
		from--
	}
	return slices.Clone(c.text[from:start])
}

// format writes an entry as its surroundings are: on lines of its own, or compact.
func format(entry, space []byte) []byte {
	var out bytes.Buffer
	var err error
	if line := bytes.LastIndexByte(space, '\n'); line >= 0 {
		err = json.Indent(&out, entry, string(space[line+1:]), "  ")
	} else {
		err = json.Compact(&out, entry)
	}
	if err != nil { // it was checked by New
		return entry
	}
	return out.Bytes()
}

// same reports whether two JSON texts mean the same. Other tools sort members.
func same(a, b []byte) bool {
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}

// parseSingle reads a configuration of one plugin (".conf", ".json").
func parseSingle(text []byte) (chain, error) {
	if err := checkJSON(text); err != nil {
		return chain{}, err
	}
	var conf struct {
		Name    string `json:"name"`
		Version string `json:"cniVersion"`
		Type    string `json:"type"`
	}
	if err := json.Unmarshal(text, &conf); err != nil {
		return chain{}, err
	}
	if conf.Type == "" {
		return chain{}, errors.New("plugin has no type")
	}
	if conf.Name == "" {
		conf.Name = defaultName
	}
	trimmed := bytes.TrimSpace(text)
	return chain{
		text: trimmed, name: conf.Name, version: conf.Version,
		plugins: []element{{end: len(trimmed), kind: conf.Type}},
	}, nil
}

// list returns a list of the single plugin and entry. Name and version stay.
func (c chain) list(entry []byte) ([]byte, error) {
	name, err := json.Marshal(c.name)
	if err != nil {
		return nil, err
	}
	version, err := json.Marshal(c.version)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, "{\n  \"cniVersion\": %s,\n  \"name\": %s,\n  \"plugins\": [\n    %s", version, name, c.text)
	if entry != nil {
		fmt.Fprintf(&out, ",\n    %s", format(entry, []byte("\n    ")))
	}
	out.WriteString("\n  ]\n}\n")
	return out.Bytes(), nil
}

// supported reports an error unless the plugin speaks the configuration's version.
func (c chain) supported() error {
	spoken := cni.Versions().SupportedVersions()
	for _, v := range append([]string{c.version}, c.more...) {
		if slices.Contains(spoken, v) {
			return nil
		}
	}
	return fmt.Errorf("cniVersion %.20q is not one of %s, which %s speaks", c.version, strings.Join(spoken, ", "), cni.Type)
}

// checkJSON returns where text is no JSON.
func checkJSON(text []byte) error {
	var any json.RawMessage
	err := json.Unmarshal(text, &any)
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return fmt.Errorf("%s: %w", place(text, syntax.Offset), err)
	}
	return err
}

// place says line and column of an offset.
func place(text []byte, offset int64) string {
	before := text[:min(max(offset-1, 0), int64(len(text)))]
	line := bytes.Count(before, []byte("\n")) + 1
	return fmt.Sprintf("line %d, column %d", line, len(before)-bytes.LastIndexByte(before, '\n'))
}
