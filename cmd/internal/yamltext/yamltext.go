// Package yamltext adds entries to lists in files of YAML or JSON as a careful person would: everything else in the file
// stays as it was, comments and layout included.
//
// What to add where is the callers' decision, and that the result means what it should is theirs to verify: aliases, for
// one, put an entry into more places than one. The package is pure; its functions may be called concurrently.
package yamltext

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// Field is one line of an entry. The value is plain: a word or a number.
type Field struct{ Name, Value string }

// Append adds an entry to lists of the objects in a text, which may hold several documents and Kubernetes' Lists. It asks
// lists for each object in the order of the text; a path names keys, and items of lists by their number. The lists must be
// there and have an entry, whose layout the new one follows.
func Append(text []byte, entry []Field, lists func(apiVersion, kind string) [][]string) ([]byte, error) {
	var out []byte
	for _, doc := range documents(text) {
		edited, err := appendTo(doc, entry, lists)
		if err != nil {
			return nil, err
		}
		out = append(out, edited...)
	}
	return out, nil
}

// documents cuts a text before the lines that begin a document.
func documents(text []byte) [][]byte {
	var out [][]byte
	start, at := 0, 0
	for line := range bytes.Lines(text) {
		if rest, ok := bytes.CutPrefix(line, []byte("---")); ok && at > start && (len(rest) == 0 || strings.ContainsRune(" \t\r\n", rune(rest[0]))) {
			out, start = append(out, text[start:at]), at
		}
		at += len(line)
	}
	return append(out, text[start:])
}

// insertion is text to put at a place.
type insertion struct {
	at   int
	text string
}

func appendTo(doc []byte, entry []Field, lists func(apiVersion, kind string) [][]string) ([]byte, error) {
	var root yaml.Node
	if err := yaml.Unmarshal(doc, &root); err != nil {
		return nil, err
	}
	if root.Kind != yaml.DocumentNode || len(root.Content) == 0 {
		return doc, nil // nothing but comments
	}
	var all []insertion
	for _, object := range objects(root.Content[0]) {
		for _, path := range lists(scalar(object, "apiVersion"), scalar(object, "kind")) {
			list, err := find(object, path)
			if err != nil {
				return nil, fmt.Errorf("find %s: %w", strings.Join(path, "."), err)
			}
			in, err := insert(doc, list, entry, len(object.Content) > 0 && object.Content[0].Style == yaml.DoubleQuotedStyle)
			if err != nil {
				return nil, fmt.Errorf("add to %s: %w", strings.Join(path, "."), err)
			}
			if !slices.Contains(all, in) { // an alias leads to the same place twice
				all = append(all, in)
			}
		}
	}
	slices.SortFunc(all, func(a, b insertion) int { return b.at - a.at })
	doc = slices.Clone(doc)
	for _, in := range all {
		doc = slices.Insert(doc, in.at, []byte(in.text)...)
	}
	return doc, nil
}

// objects returns the object of a document, or the items of a List.
func objects(root *yaml.Node) []*yaml.Node {
	if items := value(root, "items"); items != nil && items.Kind == yaml.SequenceNode && strings.HasSuffix(scalar(root, "kind"), "List") {
		return items.Content
	}
	return []*yaml.Node{root}
}

// value returns what a mapping has under a key, nil if nothing.
func value(n *yaml.Node, key string) *yaml.Node {
	if n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			v := n.Content[i+1]
			if v.Kind == yaml.AliasNode {
				return v.Alias
			}
			return v
		}
	}
	return nil
}

func scalar(n *yaml.Node, key string) string {
	if v := value(n, key); v != nil && v.Kind == yaml.ScalarNode {
		return v.Value
	}
	return ""
}

func find(n *yaml.Node, path []string) (*yaml.Node, error) {
	for _, step := range path {
		next := value(n, step)
		if n.Kind == yaml.SequenceNode {
			i, err := strconv.Atoi(step)
			if err != nil || i < 0 || i >= len(n.Content) {
				return nil, fmt.Errorf("no item %s", step)
			}
			if next = n.Content[i]; next.Kind == yaml.AliasNode {
				next = next.Alias
			}
		}
		if next == nil {
			return nil, fmt.Errorf("no %s", step)
		}
		n = next
	}
	if n.Kind != yaml.SequenceNode || len(n.Content) == 0 {
		return nil, errors.New("it is no list with entries")
	}
	return n, nil
}

// insert says where in the document the entry goes, and in which form.
func insert(doc []byte, list *yaml.Node, entry []Field, quoted bool) (insertion, error) {
	if list.Style&yaml.FlowStyle != 0 {
		at, err := offset(doc, list.Line, list.Column)
		if err == nil && doc[at] == '&' { // an anchor
			at += max(0, bytes.IndexByte(doc[at:], '['))
		}
		if err != nil || doc[at] != '[' {
			return insertion{}, errors.New("its beginning is not where it should be")
		}
		return insertion{at + 1, flow(entry, quoted) + ", "}, nil
	}
	dash, err := offset(doc, list.Line, list.Column)
	if err == nil && doc[dash] == '&' {
		if dash, err = offset(doc, list.Content[0].Line, list.Content[0].Column); err == nil {
			dash = max(0, len(bytes.TrimRight(doc[:dash], " "))-1)
		}
	}
	if err != nil || doc[dash] != '-' {
		return insertion{}, errors.New("its first entry is not where it should be")
	}
	begin := bytes.LastIndexByte(doc[:dash], '\n') + 1
	indent := string(doc[begin:dash])
	if strings.Trim(indent, " ") != "" {
		indent = strings.Repeat(" ", utf8.RuneCountInString(indent)) // a list within a list begins on the line of its parent
	}
	end, err := offset(doc, lastLine(list)+1, 1)
	if err != nil { // the text ends without a new line
		end = len(doc)
	}
	ending := "\n"
	if bytes.Contains(doc, []byte("\r\n")) {
		ending = "\r\n"
	}
	text := indent + "- " + flow(entry, quoted) + ending
	if end > 0 && doc[end-1] != '\n' {
		text = ending + strings.TrimSuffix(text, ending)
	}
	return insertion{end, text}, nil
}

// flow is the entry in one line.
func flow(entry []Field, quoted bool) string {
	parts := make([]string, len(entry))
	for i, f := range entry {
		parts[i] = f.Name + ": " + f.Value
		if !quoted {
			continue
		}
		value := f.Value
		if _, err := strconv.Atoi(value); err != nil {
			value = strconv.Quote(value)
		}
		parts[i] = strconv.Quote(f.Name) + ": " + value
	}
	return "{" + strings.Join(parts, ", ") + "}"
}

// lastLine is the last line that a node of plain values has something on. Aliases stand where they are used.
func lastLine(n *yaml.Node) int {
	line := n.Line
	for _, c := range n.Content {
		line = max(line, lastLine(c))
	}
	return line
}

// offset returns where a line and column, both counted from 1 and the column in characters, are in the text.
func offset(doc []byte, line, column int) (int, error) {
	at := 0
	for ; line > 1; line-- {
		next := bytes.IndexByte(doc[at:], '\n')
		if next < 0 {
			return 0, errors.New("the text has fewer lines")
		}
		at += next + 1
	}
	for ; column > 1; column-- {
		if at >= len(doc) || doc[at] == '\n' {
			return 0, errors.New("the line is shorter")
		}
		_, size := utf8.DecodeRune(doc[at:])
		at += size
	}
	if at >= len(doc) {
		return 0, errors.New("the text is shorter")
	}
	return at, nil
}
