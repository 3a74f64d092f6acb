package yamltext_test

import (
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/cmd/internal/yamltext"
)

var port = []yamltext.Field{{Name: "protocol", Value: "TCP"}, {Name: "port", Value: "15008"}}

// to answers with the same paths for every object of kind K.
func to(paths ...string) func(string, string) [][]string {
	return func(_, kind string) [][]string {
		var out [][]string
		for _, p := range paths {
			if kind == "K" {
				out = append(out, strings.Split(p, "."))
			}
		}
		return out
	}
}

func TestAppend(t *testing.T) {
	for _, tt := range []struct {
		name, text, want string
		lists            []string
	}{
		{
			name: "block", lists: []string{"a"},
			text: "kind: K\na:\n  # why\n  - port: 80 # web\n    protocol: TCP # yes\n# end\nb: 1\n",
			want: "kind: K\na:\n  # why\n  - port: 80 # web\n    protocol: TCP # yes\n  - {protocol: TCP, port: 15008}\n# end\nb: 1\n",
		},
		{
			name: "block_at_parents_column", lists: []string{"a"},
			text: "kind: K\na:\n- port: 80\n", want: "kind: K\na:\n- port: 80\n- {protocol: TCP, port: 15008}\n",
		},
		{
			name: "flow", lists: []string{"r.1.p"},
			text: "kind: K\nr: [{p: [80]}, {q: 'ä', p: [ {port: 9080} ]}] # c\n",
			want: "kind: K\nr: [{p: [80]}, {q: 'ä', p: [{protocol: TCP, port: 15008},  {port: 9080} ]}] # c\n",
		},
		{
			name: "flow_entry_over_lines", lists: []string{"a"},
			text: "kind: K\na:\n- {port: 80,\n   protocol: TCP}\n", want: "kind: K\na:\n- {port: 80,\n   protocol: TCP}\n- {protocol: TCP, port: 15008}\n",
		},
		{
			name: "json", lists: []string{"a"},
			text: `{"kind": "K", "a": [{"port": 80}]}`, want: `{"kind": "K", "a": [{"protocol": "TCP", "port": 15008}, {"port": 80}]}`,
		},
		{
			name: "no_end_of_line", lists: []string{"a"},
			text: "kind: K\na:\n- port: 80", want: "kind: K\na:\n- port: 80\n- {protocol: TCP, port: 15008}",
		},
		{
			name: "carriage_returns", lists: []string{"a"},
			text: "kind: K\r\na:\r\n- port: 80\r\n", want: "kind: K\r\na:\r\n- port: 80\r\n- {protocol: TCP, port: 15008}\r\n",
		},
		{
			name: "documents", lists: []string{"a"},
			text: "# first\n---\nkind: X\na: [1]\n---\n---\nkind: K\na: [1]\n--- # last\nkind: K\na:\n- 1\n",
			want: "# first\n---\nkind: X\na: [1]\n---\n---\nkind: K\na: [{protocol: TCP, port: 15008}, 1]\n--- # last\nkind: K\na:\n- 1\n- {protocol: TCP, port: 15008}\n",
		},
		{
			name: "list", lists: []string{"a"},
			text: "kind: KList\nitems:\n- kind: K\n  a: [1]\n- kind: K\n  a:\n  - 2\n",
			want: "kind: KList\nitems:\n- kind: K\n  a: [{protocol: TCP, port: 15008}, 1]\n- kind: K\n  a:\n  - 2\n  - {protocol: TCP, port: 15008}\n",
		},
		{
			name: "list_in_list", lists: []string{"a.0"},
			text: "kind: K\na:\n- - 1\n  - 2\n- - 3\n", want: "kind: K\na:\n- - 1\n  - 2\n  - {protocol: TCP, port: 15008}\n- - 3\n",
		},
		{
			name: "several", lists: []string{"a", "b"},
			text: "kind: K\nb: [2]\na: [1]\n", want: "kind: K\nb: [{protocol: TCP, port: 15008}, 2]\na: [{protocol: TCP, port: 15008}, 1]\n",
		},
		{
			name: "alias", lists: []string{"a", "b"},
			text: "kind: K\na: &x\n- 1\nb: *x\n", want: "kind: K\na: &x\n- 1\n- {protocol: TCP, port: 15008}\nb: *x\n",
		},
		{name: "nothing_to_do", text: "kind: K\na: [1]\n", want: "kind: K\na: [1]\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := yamltext.Append([]byte(tt.text), port, to(tt.lists...))
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

func TestAppendRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"no_yaml": "a: b: c", "no_list": "kind: K\na: 1\n", "nothing": "kind: K\n", "empty": "kind: K\na: []\n", "no_item": "kind: K\na: [1]\nb: 1\n",
	} {
		t.Run(name, func(t *testing.T) {
			path := "a"
			if name == "no_item" {
				path = "a.1"
			}
			if got, err := yamltext.Append([]byte(text), port, to(path)); err == nil {
				t.Errorf("made %s", got)
			}
		})
	}
}

// FuzzAppend wants that nothing of the text is lost: what is added can be taken out again.
func FuzzAppend(f *testing.F) {
	f.Add("kind: K\na:\n- port: 80\n")
	f.Add("kind: K\na: [{port: 80}]\n---\nkind: KList\nitems: [{kind: K, a: [1]}]\n")
	f.Add("kind: K\r\na: &x [ä]\r\nb: *x")
	f.Add("{\"kind\":\"K\",\"a\":[1]}")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := yamltext.Append([]byte(text), port, to("a"))
		if err != nil {
			return
		}
		rest := string(got)
		for _, added := range []string{"{protocol: TCP, port: 15008}", `{"protocol": "TCP", "port": 15008}`} {
			if strings.Contains(text, added) {
				return
			}
			rest = strings.ReplaceAll(rest, added, "")
		}
		short := func(s string) string { // without what goes with an entry
			return strings.Map(func(r rune) rune {
				if strings.ContainsRune("-, \r\n", r) {
					return -1
				}
				return r
			}, s)
		}
		if short(rest) != short(text) {
			t.Errorf("%q became %q", text, got)
		}
	})
}
