package conf_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/culvert-mesh/culvert/cmd/internal/conf"
)

// settings is a program's struct as cmd/culvert-node has one.
type settings struct {
	Mode    string
	Node    string
	Drain   time.Duration
	Capture bool
	Admin   netip.AddrPort
	Key     string
	Hosts   []netip.Addr
	Loops   int
	CA      string
}

func declare(env map[string]string) (*conf.Set, *settings) {
	c := &settings{Mode: "node", Drain: 5 * time.Second, Admin: netip.MustParseAddrPort("127.0.0.1:15000")}
	s := conf.New("culvert-node", func(name string) (string, bool) { v, ok := env[name]; return v, ok })
	conf.Add(s, &c.Mode, conf.OneOf("node", "dedicated"), conf.Option{Flag: "mode", Usage: "which pods to serve"})
	conf.Add(s, &c.Node, conf.String, conf.Option{Flag: "node", Env: []string{"CULVERT_NODE", "NODE_NAME"}, Usage: "name of the node", Required: true})
	conf.Add(s, &c.Drain, conf.Duration(0, time.Hour), conf.Option{Flag: "drain-timeout", Env: []string{"DRAIN"}, Usage: "time to finish connections"})
	conf.Add(s, &c.Capture, conf.Bool, conf.Option{Flag: "capture", Usage: "apply the capture rules"})
	conf.Add(s, &c.Admin, conf.AddrPort, conf.Option{Flag: "admin", Usage: "address of the admin port"})
	conf.Add(s, &c.Key, conf.String, conf.Option{Flag: "key", Env: []string{"KEY"}, Usage: "a secret", Secret: true})
	conf.Add(s, &c.Hosts, conf.List(conf.Addr), conf.Option{Flag: "hosts", Usage: "addresses of hosts"})
	conf.Add(s, &c.Loops, conf.Int(0, 64), conf.Option{Flag: "loops", Usage: "event loops"})
	conf.Add(s, &c.CA, conf.File, conf.Option{Flag: "ca", Usage: "a certificate"})
	return s, c
}

func TestParse(t *testing.T) {
	defaults := settings{Mode: "node", Node: "n1", Drain: 5 * time.Second, Admin: netip.MustParseAddrPort("127.0.0.1:15000")}
	with := func(change func(*settings)) settings { c := defaults; change(&c); return c }
	tests := []struct {
		name string
		args []string
		env  map[string]string
		want settings
	}{
		{"defaults", []string{"--node=n1"}, nil, defaults},
		{"separate_value", []string{"--node", "n1"}, nil, defaults},
		{"single_dash", []string{"-node", "n1"}, nil, defaults},
		{"environment", nil, map[string]string{"NODE_NAME": "n1"}, defaults},
		{"first_variable_wins", nil, map[string]string{"CULVERT_NODE": "n1", "NODE_NAME": "n2"}, defaults},
		{"flag_over_environment", []string{"--node=n1"}, map[string]string{"NODE_NAME": "n2"}, defaults},
		{"empty_variable_is_unset", []string{"--node=n1"}, map[string]string{"DRAIN": ""}, defaults},
		{"bare_boolean", []string{"--capture", "--node=n1"}, nil, with(func(c *settings) { c.Capture = true })},
		{"boolean_value", []string{"--capture=false", "--node=n1"}, nil, defaults},
		{"list", []string{"--node=n1", "--hosts=10.0.0.1, fd00::1,"}, nil, with(func(c *settings) {
			c.Hosts = []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}
		})},
		{"value_with_equals_sign", []string{"--node=a=b"}, nil, with(func(c *settings) { c.Node = "a=b" })},
		{"numbers", []string{"--node=n1", "--loops=2", "--drain-timeout=1m"}, nil, with(func(c *settings) { c.Loops, c.Drain = 2, time.Minute })},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, got := declare(tt.env)
			if err := s.Parse(tt.args); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, *got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
				t.Errorf("settings (-want +got):\n%s", diff)
			}
		})
	}
}

func TestFaults(t *testing.T) {
	tests := []struct {
		name string
		args []string
		env  map[string]string
		want []string
	}{
		{"required", nil, nil, []string{"--node: required (or environment variable CULVERT_NODE, NODE_NAME)"}},
		{"empty", []string{"--node="}, nil, []string{`--node: "": is empty`}},
		{"unknown", []string{"--node=n1", "--workload=x"}, nil, []string{"--workload: unknown flag"}},
		{"misspelt", []string{"--node=n1", "--dran-timeout", "3s"}, nil, []string{"--dran-timeout: unknown flag; did you mean --drain-timeout?"}},
		{"missing_value", []string{"--node"}, nil, []string{"--node: a value is missing"}},
		{"twice", []string{"--node=n1", "--node=n2"}, nil, []string{"--node: given more than once"}},
		{"argument", []string{"--node=n1", "start"}, nil, []string{"start: unexpected argument: every setting is a flag"}},
		{"faulty_variable", []string{"--node=n1"}, map[string]string{"DRAIN": "soon"}, []string{`$DRAIN: "soon": not a duration such as 500ms, 30s or 5m`}},
		{"secret_is_not_repeated", []string{"--node=n1"}, map[string]string{"KEY": " "}, []string{"$KEY: is empty"}},
		{"long_text_is_not_repeated", []string{"--node=n1"}, map[string]string{"DRAIN": strings.Repeat("s", 41)}, []string{"$DRAIN: a text of 41 characters: not a duration such as 500ms, 30s or 5m"}},
		{"lines_are_not_repeated", []string{"--node=n1", "--mode=---\nsecret"}, nil, []string{"--mode: a text of 10 characters: not one of node, dedicated"}},
		{"long_element_is_not_repeated", []string{"--node=n1", "--hosts=" + strings.Repeat("s", 41)}, nil, []string{
			"--hosts: a text of 41 characters: element a text of 41 characters: not an IP address",
		}},
		{"path_is_repeated", []string{"--node=n1", "--ca=/" + strings.Repeat("a/", 30) + "ca.pem"}, nil, []string{`--ca: "/` + strings.Repeat("a/", 30) + `ca.pem": no such file or directory`}},
		{"all_at_once", []string{"--mode=mesh", "--loops=-1", "--admin=localhost", "--hosts=10.0.0.1/8"}, map[string]string{"DRAIN": "2h"}, []string{
			`--mode: "mesh": not one of node, dedicated`,
			`--loops: "-1": not a whole number from 0 to 64`,
			`--admin: "localhost": not an address and port such as 127.0.0.1:15000 or [::1]:15000`,
			`--hosts: "10.0.0.1/8": element "10.0.0.1/8": not an IP address`,
			"--node: required (or environment variable CULVERT_NODE, NODE_NAME)",
			`$DRAIN: "2h": not between 0s and 1h`,
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, got := declare(tt.env)
			before := *got
			err := s.Parse(tt.args)
			if err == nil {
				t.Fatal("no fault found")
			}
			if diff := cmp.Diff(tt.want, strings.Split(err.Error(), "\n")); diff != "" {
				t.Errorf("faults (-want +got):\n%s", diff)
			}
			if fmt.Sprint(before) != fmt.Sprint(*got) {
				t.Errorf("settings changed in spite of faults: %+v", *got)
			}
		})
	}
}

func TestFaultIsTyped(t *testing.T) {
	s, _ := declare(nil)
	err := s.Parse([]string{"--node=n1", "--loops=x"})
	var fault *conf.Fault
	if !errors.As(err, &fault) || fault.Where != "--loops" {
		t.Errorf("got %v, want a fault of --loops", err)
	}
}

func TestChecksRunOnSettings(t *testing.T) {
	s, c := declare(map[string]string{"NODE_NAME": "n1"})
	s.Check("node", func() error {
		if c.Node != "n2" {
			return errors.New("must be n2")
		}
		return nil
	})
	if err := s.Parse(nil); err == nil || err.Error() != "$NODE_NAME: must be n2" {
		t.Errorf("got %v, want the fault at the variable", err)
	}
}

func TestHelp(t *testing.T) {
	s, _ := declare(nil)
	life, rest, ipv6, addresses := 24*time.Hour, time.Duration(0), true, []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.IPv6Loopback()}
	conf.Add(s, &life, conf.Duration(0, 48*time.Hour), conf.Option{Flag: "life", Usage: "how long it lives"})
	conf.Add(s, &rest, conf.Duration(0, 48*time.Hour), conf.Option{Flag: "rest", Usage: "how long it rests; default as long as it lives"})
	conf.Add(s, &ipv6, conf.Bool, conf.Option{Flag: "ipv6", Usage: "serve it too"})
	conf.Add(s, &addresses, conf.List(conf.Addr), conf.Option{Flag: "addresses", Usage: "whom"})
	if err := s.Parse([]string{"--loops=x", "--help"}); !errors.Is(err, conf.ErrHelp) {
		t.Fatalf("got %v, want ErrHelp", err)
	}
	var b strings.Builder
	s.Usage(&b)
	for _, want := range []string{
		"--drain-timeout  time to finish connections (default 5s; $DRAIN)",
		"--node           name of the node (required; $CULVERT_NODE, $NODE_NAME)",
		"--life           how long it lives (default 24h)\n",
		"--rest           how long it rests; default as long as it lives\n",
		"--addresses      whom (default 10.0.0.1,::1)\n",
		"--hosts          addresses of hosts\n",
		"--capture        apply the capture rules\n",
		"--ipv6           serve it too (default true)\n",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("usage lacks %q:\n%s", want, b.String())
		}
	}
}

func TestValues(t *testing.T) {
	s, _ := declare(map[string]string{"KEY": "hush", "NODE_NAME": "n1"})
	if err := s.Parse([]string{"--loops=2"}); err != nil {
		t.Fatal(err)
	}
	got := make(map[string]conf.Value)
	for _, v := range s.Values() {
		got[v.Flag] = v
	}
	for _, want := range []conf.Value{
		{Flag: "key", Value: "(secret)", Source: "$KEY"},
		{Flag: "node", Value: "n1", Source: "$NODE_NAME"},
		{Flag: "loops", Value: "2", Source: "--loops"},
		{Flag: "mode", Value: "node", Source: "default"},
	} {
		if got[want.Flag] != want {
			t.Errorf("got %+v, want %+v", got[want.Flag], want)
		}
	}
}

func TestParsers(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	text := func(v any, err error) string {
		if err != nil {
			return "error: " + err.Error()
		}
		return fmt.Sprint(v)
	}
	tests := []struct{ name, got, want string }{
		{"addr", text(conf.Addr("fd00::1")), "fd00::1"},
		{"addr_bad", text(conf.Addr("10.0.0")), "error: not an IP address"},
		{"bool_bad", text(conf.Bool("maybe")), "error: neither true nor false"},
		{"file", text(conf.File(file)), file},
		{"file_missing", text(conf.File(file + "x")), "error: no such file or directory"},
		{"file_is_dir", text(conf.File(dir)), "error: is a directory"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.got != tt.want {
				t.Errorf("got %s, want %s", tt.got, tt.want)
			}
		})
	}
}

func TestAddRefusesWrongDeclaration(t *testing.T) {
	s, c := declare(nil)
	defer func() {
		if recover() == nil {
			t.Error("a flag declared twice was taken")
		}
	}()
	conf.Add(s, &c.Mode, conf.String, conf.Option{Flag: "mode", Usage: "again"})
}
