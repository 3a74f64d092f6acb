package file

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/culvert-mesh/culvert/workload"
)

const (
	maxFaults  = 20
	maxAliased = 100_000 // nodes visited through aliases
)

// Decode reads the content of a file; name is its name for faults. Keys that
// the schema does not have are refused, as are keys, UIDs and names given
// twice. What may be left out has WDS's defaults.
func Decode(name string, data []byte) (State, error) {
	d := &decoder{file: name}
	root := d.parse(data)
	if root != nil {
		d.root(root)
	}
	if len(d.faults) > 0 {
		return State{}, errors.Join(d.faults...)
	}
	return d.state, nil
}

// decoder walks the YAML nodes, because only they know their lines. It notes
// faults and goes on, so that one run shows all of them.
type decoder struct {
	file    string
	state   State
	faults  []error // at most maxFaults of count
	count   int
	aliased int
	lines   map[[2]string]int // of objects, by kind and key

	endpoints []endpointRef // of services, joined when all is read
}

type endpointRef struct {
	node    *yaml.Node
	service workload.NamespacedHostname
	uid     string
	ports   workload.PortMap
}

var yamlLine = regexp.MustCompile(`^yaml: (?:unmarshal errors:\n\s*)?line (\d+): `)

func (d *decoder) parse(data []byte) *yaml.Node {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	err := dec.Decode(&doc)
	if errors.Is(err, io.EOF) {
		// Also what a file looks like while it is being written.
		d.faults = append(d.faults, Fault{File: d.file, Line: 1, Reason: "no content; an empty mesh is written {}"})
		return nil
	}
	if err == nil {
		var second yaml.Node
		if err = dec.Decode(&second); errors.Is(err, io.EOF) {
			return doc.Content[0]
		}
		if err == nil {
			d.fault(&second, "second document; all belongs into one")
			return nil
		}
	}
	f := Fault{File: d.file, Reason: strings.TrimPrefix(err.Error(), "yaml: ")}
	if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
		f.Line, _ = strconv.Atoi(m[1])
		f.Reason = err.Error()[len(m[0]):]
	}
	d.faults = append(d.faults, f)
	return nil
}

func (d *decoder) fault(n *yaml.Node, format string, args ...any) {
	d.count++
	if d.count <= maxFaults {
		d.faults = append(d.faults, Fault{File: d.file, Line: max(n.Line, 1), Reason: fmt.Sprintf(format, args...)})
	}
}

func (d *decoder) warn(n *yaml.Node, format string, args ...any) {
	d.state.Warnings = append(d.state.Warnings, Fault{File: d.file, Line: n.Line, Reason: fmt.Sprintf(format, args...)})
}

func (d *decoder) root(n *yaml.Node) {
	d.object(n, "file", fields{
		"workloads": func(n *yaml.Node) { d.each(n, "workloads", d.workload) },
		"services":  func(n *yaml.Node) { d.each(n, "services", d.service) },
		"policies":  func(n *yaml.Node) { d.each(n, "policies", d.policy) },
		"networkPolicies": func(n *yaml.Node) {
			d.each(n, "networkPolicies", d.networkPolicy)
		},
	})
	d.joinEndpoints()
}

// once refuses a key of a kind of object that was there before.
func (d *decoder) once(n *yaml.Node, kind, key string) {
	if d.lines == nil {
		d.lines = make(map[[2]string]int)
	}
	at := [2]string{kind, key}
	if line, twice := d.lines[at]; twice {
		d.fault(n, "%s %q is in line %d already", kind, key, line)
		return
	}
	d.lines[at] = n.Line
}

func (d *decoder) joinEndpoints() {
	byUID := make(map[string]*workload.Workload, len(d.state.Workloads))
	for _, w := range d.state.Workloads {
		byUID[w.UID] = w
	}
	for _, e := range d.endpoints {
		w := byUID[e.uid]
		if w == nil {
			d.warn(e.node, "endpoint %q of %s is no workload of this file", e.uid, e.service)
			continue
		}
		if _, ok := w.Services[e.service]; !ok {
			if w.Services == nil {
				w.Services = make(map[workload.NamespacedHostname]workload.PortMap)
			}
			w.Services[e.service] = e.ports
		}
	}
}

// resolve follows an alias. Aliases may multiply what is visited, so that is
// bounded.
func (d *decoder) resolve(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
		if d.aliased += 1 + len(n.Content); d.aliased > maxAliased {
			if d.aliased < 2*maxAliased {
				d.fault(n, "too many aliases")
			}
			return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Line: n.Line}
		}
	}
	return n
}

type fields map[string]func(*yaml.Node)

// object hands the values of a mapping to the fields and returns the keys that
// were there.
func (d *decoder) object(n *yaml.Node, what string, f fields) map[string]bool {
	n = d.resolve(n)
	seen := make(map[string]bool)
	if n.Kind != yaml.MappingNode {
		d.fault(n, "%s: want a mapping, have %s", what, describe(n))
		return seen
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		set, known := f[k.Value]
		switch {
		case k.Kind != yaml.ScalarNode || !known:
			d.fault(k, "%s: unknown key %s", what, shown(k.Value))
		case seen[k.Value]:
			d.fault(k, "%s: key %q is there twice", what, k.Value)
		default:
			seen[k.Value] = true
			set(n.Content[i+1])
		}
	}
	return seen
}

// required notes which keys are missing; it reports whether there are none.
func (d *decoder) required(n *yaml.Node, what string, seen map[string]bool, keys ...string) bool {
	ok := true
	for _, k := range keys {
		if !seen[k] && d.resolve(n).Kind == yaml.MappingNode {
			d.fault(n, "%s: %s is missing", what, k)
			ok = false
		}
	}
	return ok
}

// each hands over the items of a list.
func (d *decoder) each(n *yaml.Node, what string, item func(*yaml.Node)) {
	n = d.resolve(n)
	if n.Kind != yaml.SequenceNode {
		d.fault(n, "%s: want a list, have %s", what, describe(n))
		return
	}
	for _, c := range n.Content {
		item(c)
	}
}

func (d *decoder) string(n *yaml.Node, what string) string {
	n = d.resolve(n)
	if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
		d.fault(n, "%s: want a string, have %s", what, describe(n))
		return ""
	}
	return n.Value
}

func (d *decoder) bool(n *yaml.Node, what string) bool {
	n = d.resolve(n)
	var v bool
	if n.Kind != yaml.ScalarNode || n.Tag != "!!bool" || n.Decode(&v) != nil {
		d.fault(n, "%s: want true or false, have %s", what, describe(n))
	}
	return v
}

func (d *decoder) number(n *yaml.Node, what string, limit uint64) uint64 {
	n = d.resolve(n)
	v, err := strconv.ParseUint(n.Value, 10, 64)
	if n.Kind != yaml.ScalarNode || err != nil || v > limit {
		d.fault(n, "%s: want a number up to %d, have %s", what, limit, describe(n))
		return 0
	}
	return v
}

func (d *decoder) port(n *yaml.Node, what string) uint16 {
	return uint16(d.number(n, what, 1<<16-1))
}

// ports reads {servicePort: targetPort}.
func (d *decoder) ports(n *yaml.Node, what string) workload.PortMap {
	n = d.resolve(n)
	m := make(workload.PortMap)
	if n.Kind != yaml.MappingNode {
		d.fault(n, "%s: want a mapping of ports, have %s", what, describe(n))
		return m
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		from := d.port(n.Content[i], what)
		if _, twice := m[from]; twice {
			d.fault(n.Content[i], "%s: port %d is there twice", what, from)
		}
		m[from] = d.port(n.Content[i+1], what)
	}
	return m
}

// enum reads one of the names that String gives the values from first to last.
func enum[T interface {
	~uint8
	String() string
}](d *decoder, n *yaml.Node, what string, first, last T) T {
	before := d.count
	s := d.string(n, what)
	if d.count > before {
		return first
	}
	var names []string
	for v := first; v <= last; v++ {
		if v.String() == s {
			return v
		}
		names = append(names, v.String())
	}
	d.fault(n, "%s: %s is none of %s", what, shown(s), strings.Join(names, ", "))
	return first
}

// parsed reads a string with a function that returns an error.
func parsed[T any](d *decoder, n *yaml.Node, what string, parse func(string) (T, error)) (T, bool) {
	before := d.count
	s := d.string(n, what)
	v, err := parse(s)
	if d.count > before {
		return v, false
	}
	if err != nil {
		d.fault(n, "%s: %v", what, err)
	}
	return v, err == nil
}

// isNull reports a value that stands for "not given".
func (d *decoder) isNull(n *yaml.Node) bool {
	n = d.resolve(n)
	return n.Kind == yaml.ScalarNode && n.Tag == "!!null"
}

func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	default:
		if n.Tag == "!!null" {
			return "nothing"
		}
		return shown(n.Value)
	}
}

// maxShown is how many characters of a faulty text are repeated.
const maxShown = 40

// shown is a faulty text for the log. One that is long or of several lines is only measured: the file may be another one
// than was meant, and its content not for everybody.
func shown(text string) string {
	if n := utf8.RuneCountInString(text); n > maxShown || strings.ContainsAny(text, "\r\n") {
		return fmt.Sprintf("a text of %d characters", n)
	}
	return strconv.Quote(text)
}
