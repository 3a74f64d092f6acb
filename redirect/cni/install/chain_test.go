package install

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/redirect/cni"
)

const entry = `{"type":"culvert-cni","agentSocket":"/s"}`

// lists are configurations as they are on real nodes, and what becomes of them.
var lists = []struct {
	name, text, want string
}{
	{"kind", `
{
	"cniVersion": "0.3.1",
	"name": "kindnet",
	"plugins": [
	{
		"type": "ptp",
		"ipMasq": false,
		"mtu": 1500
	},
	{
		"type": "portmap",
		"capabilities": {"portMappings": true}
	}
	]
}
`, `
{
	"cniVersion": "0.3.1",
	"name": "kindnet",
	"plugins": [
	{
		"type": "ptp",
		"ipMasq": false,
		"mtu": 1500
	},
	{
		"type": "portmap",
		"capabilities": {"portMappings": true}
	},
	{
	  "type": "culvert-cni",
	  "agentSocket": "/s"
	}
	]
}
`},
	{"compact", `{"name":"a","cniVersion":"1.0.0","plugins":[{"type":"bridge"}],"x":1e400}`,
		`{"name":"a","cniVersion":"1.0.0","plugins":[{"type":"bridge"},` + entry + `],"x":1e400}`},
	{"unknown_members_and_order", `{"zz":[],"plugins":[ {"type":"bridge","n":12345678901234567890} ],"cniVersion":"0.4.0","name":"a","disableCheck":true}`,
		`{"zz":[],"plugins":[ {"type":"bridge","n":12345678901234567890}, ` + entry + ` ],"cniVersion":"0.4.0","name":"a","disableCheck":true}`},
	{"there_already", `{"name":"a","plugins":[{"type":"bridge"},{"agentSocket": "/s", "type": "culvert-cni"}]}`,
		`{"name":"a","plugins":[{"type":"bridge"},{"agentSocket": "/s", "type": "culvert-cni"}]}`},
	{"other_settings", `{"name":"a","plugins":[{"type":"bridge"},{"type":"culvert-cni"}]}`,
		`{"name":"a","plugins":[{"type":"bridge"},` + entry + `]}`},
	{"not_the_last", `{"name":"a","plugins":[` + entry + `,{"type":"bridge"},` + entry + `,{"type":"tuning"}]}`,
		`{"name":"a","plugins":[{"type":"bridge"},{"type":"tuning"},` + entry + `]}`},
	{"twice", `{"name":"a","plugins":[{"type":"bridge"},` + entry + `,` + entry + `]}`,
		`{"name":"a","plugins":[{"type":"bridge"},` + entry + `]}`},
}

func TestWith(t *testing.T) {
	for _, tt := range lists {
		t.Run(tt.name, func(t *testing.T) {
			c, err := parseChain([]byte(tt.text))
			if err != nil {
				t.Fatal(err)
			}
			got, err := c.with([]byte(entry))
			if err != nil || string(got) != tt.want {
				t.Fatalf("with: %v\n%s\nwant\n%s", err, got, tt.want)
			}
			again, err := parseChain(got)
			if err != nil {
				t.Fatal(err)
			}
			if twice, err := again.with([]byte(entry)); err != nil || !bytes.Equal(twice, got) {
				t.Errorf("a second time: %v\n%s", err, twice)
			}
			back, err := again.without()
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(tt.text, cni.Type) && string(back) != tt.text {
				t.Errorf("without gives\n%s\nand not what was there\n%s", back, tt.text)
			}
			if bytes.Contains(back, []byte(cni.Type)) {
				t.Errorf("without leaves an entry: %s", back)
			}
		})
	}
}

func TestOnlyOurs(t *testing.T) {
	c, err := parseChain([]byte(`{"name":"a","plugins":[` + entry + `]}`))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.with([]byte(`{"type":"culvert-cni"}`)); err == nil || !strings.Contains(err.Error(), "nothing to be chained to") {
		t.Errorf("with = %v", err)
	}
	if got, err := c.without(); err != nil || string(got) != `{"name":"a","plugins":[]}` {
		t.Errorf("without = %s, %v", got, err)
	}
}

func TestBadLists(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"empty", "", "line 1, column 1: unexpected end of JSON input"},
		{"half", "{\n  \"name\": \"a\",\n  \"plugins\": [", "line 3, column 14: unexpected end"},
		{"comma", "{\n  \"name\": \"a\",\n}", "line 3, column 1: invalid character '}'"},
		{"two_values", `{"name":"a","plugins":[{"type":"b"}]} {}`, "line 1, column 39: invalid character '{'"},
		{"array", `[]`, "not a JSON object"},
		{"null", `null`, "not a JSON object"},
		{"no_name", `{"plugins":[{"type":"b"}]}`, "has no name"},
		{"no_plugins", `{"name":"a"}`, "has no plugins"},
		{"no_plugin", `{"name":"a","plugins":[]}`, "has no plugins"},
		{"plugins_object", `{"name":"a","plugins":{}}`, `"plugins": not an array`},
		{"plugins_null", `{"name":"a","plugins":null}`, `"plugins": not an array`},
		{"plugin_text", `{"name":"a","plugins":["b"]}`, "plugin 1"},
		{"plugin_without_type", `{"name":"a","plugins":[{"type":"b"},{}]}`, "plugin 2 has no type"},
		{"name_number", `{"name":7,"plugins":[{"type":"b"}]}`, `"name"`},
		{"plugins_twice", `{"name":"a","plugins":[{"type":"b"}],"plugins":[{"type":"c"}]}`, `"plugins": appears twice`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := parseChain([]byte(tt.text)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("parseChain = %v, want %q", err, tt.want)
			}
		})
	}
}

func TestSingle(t *testing.T) {
	text := "{\n  \"cniVersion\": \"0.4.0\",\n  \"name\": \"net\",\n  \"type\": \"bridge\",\n  \"n\": 12345678901234567890\n}\n"
	c, err := parseSingle([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.list([]byte(entry))
	if err != nil {
		t.Fatal(err)
	}
	l, err := parseChain(got)
	if err != nil {
		t.Fatalf("%v in\n%s", err, got)
	}
	if l.version != "0.4.0" || l.name != "net" || strings.Join(l.kinds(), " ") != "bridge culvert-cni" || !bytes.Contains(got, []byte("12345678901234567890")) {
		t.Errorf("list is\n%s", got)
	}
	plain, err := c.list(nil)
	if err != nil {
		t.Fatal(err)
	}
	if cut, err := l.without(); err != nil || !bytes.Equal(cut, plain) {
		t.Errorf("cut: %v\n%s\nplain\n%s", err, cut, plain)
	}
	if c, err := parseSingle([]byte(`{"type":"bridge"}`)); err != nil || c.name != defaultName {
		t.Errorf("without a name: %+v, %v", c, err)
	}
	for _, bad := range []string{"", "{", "[]", `{"name":"a"}`, `{"name":"a","plugins":[{"type":"b"}]}`, `{"type":7}`} {
		if _, err := parseSingle([]byte(bad)); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

// Inserting keeps everything else as it is; cutting gives it back.
func FuzzChain(f *testing.F) {
	for _, l := range lists {
		f.Add([]byte(l.text))
	}
	f.Add([]byte(`{"name":"a","plugins":[{"type":"b"}],"\u0070lugins":1}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := parseChain(text)
		if err != nil {
			return
		}
		without, err := c.without()
		if err != nil {
			t.Fatal(err)
		}
		with, err := c.with([]byte(entry))
		if err != nil {
			return
		}
		again, err := parseChain(with)
		if err != nil {
			t.Fatalf("%v in %s", err, with)
		}
		if k := again.kinds(); k[len(k)-1] != cni.Type {
			t.Fatalf("plugins %q", k)
		}
		if back, err := again.without(); err != nil || !bytes.Equal(back, without) && !bytes.Equal(with, text) {
			t.Fatalf("%v, %q, want %q", err, back, without)
		}
		if !json.Valid(with) {
			t.Fatalf("not JSON: %q", with)
		}
	})
}

func FuzzSingle(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"0.4.0","name":"net","type":"bridge"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := parseSingle(text)
		if err != nil {
			return
		}
		list, err := c.list([]byte(entry))
		if err != nil {
			t.Fatal(err)
		}
		l, err := parseChain(list)
		if err != nil || l.name == "" || len(l.plugins) != 2 {
			t.Fatalf("%v in %s", err, list)
		}
	})
}
