package dns

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func newTestResolver(t *testing.T) *Resolver {
	t.Helper()
	r, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestExpansions(t *testing.T) {
	tests := []struct {
		name string
		host string
		want []string
	}{
		{"service", "name", []string{"name.ns1.svc.cluster.local"}},
		{"service-and-namespace", "name.ns2", []string{
			"name.ns2.svc.cluster.local", "name.ns2.ns1.svc.cluster.local",
		}},
		{"service-namespace-svc", "name.ns2.svc", []string{
			"name.ns2.svc.cluster.local", "name.ns2.svc.svc.cluster.local",
		}},
		{"pod-subdomain-namespace", "name.ns2.not-svc", []string{"name.ns2.not-svc.svc.cluster.local"}},
		{"pod-subdomain-namespace-svc", "pod.sub-domain.ns.svc", []string{"pod.sub-domain.ns.svc.cluster.local"}},
		{"four-labels-without-svc", "pod.sub-domain.ns.not-svc", nil},
		{"half-a-domain", "name.ns2.svc.cluster", nil},
		{"fully-qualified", "name.ns2.svc.cluster.local", nil},
		{"other-domain", "www.google.com", []string{"www.google.com.svc.cluster.local"}},
	}
	r := newTestResolver(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if d := cmp.Diff(tt.want, r.expansions(tt.host, "ns1")); d != "" {
				t.Errorf("expansions(%q) (-want +got):\n%s", tt.host, d)
			}
		})
	}
}

func TestAliases(t *testing.T) {
	r := newTestResolver(t)
	got := r.aliases(Client{Namespace: "ns1"}, "a.ns1.svc.cluster.local")
	want := []alias{
		{"a.ns1.svc.cluster.local", ""},
		{"a", "a"}, // the first search domain
		{"a.ns1", "a.ns1"},
		{"a.ns1.ns1.svc.cluster.local", "a.ns1"},
		{"a.ns1.svc", "a.ns1.svc"},
		{"a.ns1.svc.svc.cluster.local", "a.ns1.svc"},
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(alias{})); d != "" {
		t.Errorf("aliases (-want +got):\n%s", d)
	}
}

func TestSearchDomains(t *testing.T) {
	tests := []struct {
		name   string
		client Client
		want   []string
	}{
		{"made-of-the-namespace", Client{Namespace: "default-ns"}, []string{
			"default-ns.svc.cluster.local", "svc.cluster.local", "cluster.local",
		}},
		{"given", Client{Namespace: "default-ns", Search: []string{"Corp.Example.", "x"}}, []string{"corp.example", "x"}},
		{"none", Client{Namespace: "default-ns", Search: []string{}}, []string{}},
	}
	r := newTestResolver(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if d := cmp.Diff(tt.want, r.search(tt.client)); d != "" {
				t.Errorf("search (-want +got):\n%s", d)
			}
		})
	}
}

func TestTrimDomain(t *testing.T) {
	tests := []struct {
		name         string
		host, domain string
		want         string
		ok           bool
	}{
		{"trimmed", "name.ns.svc.cluster.local", "svc.cluster.local", "name.ns", true},
		{"other-domain", "name.ns.a.different.domain", "svc.cluster.local", "", false},
		{"nothing-left", "svc.cluster.local", "svc.cluster.local", "", false},
		{"inside-a-label", "name.xsvc.cluster.local", "svc.cluster.local", "", false},
		{"empty-domain", "name", "", "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := trimDomain(tt.host, tt.domain)
			if ok != tt.ok || ok && got != tt.want {
				t.Errorf("trimDomain(%q, %q) = %q, %v; want %q, %v", tt.host, tt.domain, got, ok, tt.want, tt.ok)
			}
		})
	}
}

func TestWildcards(t *testing.T) {
	tests := []struct {
		name string
		host string
		want []string
	}{
		{"one-label", "svc1", []string{"svc1"}},
		{"five-labels", "svc1.ns1.svc.cluster.local", []string{
			"svc1.ns1.svc.cluster.local", "*.ns1.svc.cluster.local", "*.svc.cluster.local", "*.cluster.local", "*.local",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for host, wildcard := range wildcards(tt.host) {
				if wildcard != (host[0] == '*') {
					t.Errorf("%q: wildcard = %v", host, wildcard)
				}
				got = append(got, host)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("wildcards(%q) (-want +got):\n%s", tt.host, d)
			}
		})
	}
}

func TestNewRefusesBadDomain(t *testing.T) {
	for _, domain := range []string{".", "a..b", "*.local", `a\.b`, "a b", "ns/x"} {
		if _, err := New(Config{Domain: domain}); err == nil {
			t.Errorf("New accepts domain %q", domain)
		}
	}
}
