package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/cmd/internal/kubeca"
)

func TestSettings(t *testing.T) {
	env := map[string]string{"POD_NAMESPACE": "mesh", "POD_NAME": "one", "TRUST_DOMAIN": "td.example", "CLUSTER_DOMAIN": "c.example", "NETWORK": "",
		"TRUST_DOMAIN_ALIASES": "old.example, older.example", "CULVERT_LENIENT_L7": "true"}
	s, _, err := readSettings(nil, func(name string) (string, bool) { v, ok := env[name]; return v, ok })
	if err != nil {
		t.Fatal(err)
	}
	if s.rootNamespace != "mesh" || s.trustDomain.String() != "td.example" || s.pod != "one" || !s.removeTaints {
		t.Errorf("settings are %+v", s)
	}
	if want := []string{"old.example", "older.example"}; !slices.Equal(s.aliases(), want) || !s.lenientL7 {
		t.Errorf("aliases are %q, want %q; lenient %v", s.aliases(), want, s.lenientL7)
	}
	if want := []kubeca.Account{{Namespace: "mesh", Name: "culvert-node"}}; !slices.Equal(s.agents, want) {
		t.Errorf("agents are %v, want %v", s.agents, want)
	}
	names := s.names()
	for _, want := range []string{"culvert-controller.mesh.svc", "culvert-controller.mesh.svc.c.example"} {
		if !slices.Contains(names, want) {
			t.Errorf("names are %q, without %q", names, want)
		}
	}
}

func TestSettingsRefuses(t *testing.T) {
	for _, tt := range []struct{ arg, want string }{
		{"--trust-domain=UPPER", "--trust-domain"},
		{"--trust-domain-aliases=a,b/c", "--trust-domain-aliases"},
		{"--agents=culvert-node", "not of the form namespace/name"},
		{"--admin-address=0.0.0.0:15000", "must be a loopback address"},
		{"--kubeconfig=/nonexistent", "--kubeconfig"},
		{"--ca-max-ttl=1h", "is more than the longest"},
		{"--lease-duration=1s", "--lease-duration"},
		{"--remove-taint=false", "did you mean --remove-taints?"},
	} {
		_, _, err := readSettings([]string{tt.arg}, func(string) (string, bool) { return "", false })
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error is %v, want one with %q", tt.arg, err, tt.want)
		}
	}
}
