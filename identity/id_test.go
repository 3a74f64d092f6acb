package identity_test

import (
	"crypto/x509"
	"net/url"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/identity"
)

func TestParse(t *testing.T) {
	long := strings.Repeat("a", 2048)
	tests := []struct {
		name string
		in   string
		want string // trust domain, namespace, service account; empty: error
		err  string
	}{
		{name: "plain", in: "spiffe://cluster.local/ns/default/sa/web", want: "cluster.local default web"},
		{name: "all_characters", in: "spiffe://a-b_c.9/ns/A.b-C_0/sa/x.Y", want: "a-b_c.9 A.b-C_0 x.Y"},
		{name: "empty", in: "", err: `parse identity "": scheme is not spiffe`},
		{name: "other_scheme", in: "https://cluster.local/ns/a/sa/b", err: `parse identity "https://cluster.local/ns/a/sa/b": scheme is not spiffe`},
		{name: "upper_scheme", in: "SPIFFE://td/ns/a/sa/b", err: `parse identity "SPIFFE://td/ns/a/sa/b": scheme is not spiffe`},
		{name: "no_scheme", in: "td/ns/a/sa/b", err: `parse identity "td/ns/a/sa/b": scheme is not spiffe`},
		{name: "no_path", in: "spiffe://td", err: `parse identity "spiffe://td": not of the form spiffe://TRUSTDOMAIN/ns/NAMESPACE/sa/SERVICEACCOUNT`},
		{name: "other_path", in: "spiffe://td/foo/a/sa/b", err: `parse identity "spiffe://td/foo/a/sa/b": not of the form spiffe://TRUSTDOMAIN/ns/NAMESPACE/sa/SERVICEACCOUNT`},
		{name: "swapped", in: "spiffe://td/sa/a/ns/b", err: `parse identity "spiffe://td/sa/a/ns/b": not of the form spiffe://TRUSTDOMAIN/ns/NAMESPACE/sa/SERVICEACCOUNT`},
		{name: "extra_segment", in: "spiffe://td/ns/a/sa/b/c", err: `parse identity "spiffe://td/ns/a/sa/b/c": not of the form spiffe://TRUSTDOMAIN/ns/NAMESPACE/sa/SERVICEACCOUNT`},
		{name: "trailing_slash", in: "spiffe://td/ns/a/sa/b/", err: `parse identity "spiffe://td/ns/a/sa/b/": not of the form spiffe://TRUSTDOMAIN/ns/NAMESPACE/sa/SERVICEACCOUNT`},
		{name: "empty_trust_domain", in: "spiffe:///ns/a/sa/b", err: `parse identity "spiffe:///ns/a/sa/b": parse trust domain: empty`},
		{name: "empty_namespace", in: "spiffe://td/ns//sa/b", err: `parse identity "spiffe://td/ns//sa/b": make identity: namespace: empty`},
		{name: "empty_service_account", in: "spiffe://td/ns/a/sa/", err: `parse identity "spiffe://td/ns/a/sa/": make identity: service account: empty`},
		{name: "dots", in: "spiffe://td/ns/../sa/b", err: `parse identity "spiffe://td/ns/../sa/b": make identity: namespace: ".." is not allowed`},
		{name: "upper_trust_domain", in: "spiffe://TD/ns/a/sa/b", err: `parse identity "spiffe://TD/ns/a/sa/b": parse trust domain "TD": character 'T' at 0 is not allowed`},
		{name: "port", in: "spiffe://td:1/ns/a/sa/b", err: `parse identity "spiffe://td:1/ns/a/sa/b": parse trust domain "td:1": character ':' at 2 is not allowed`},
		{name: "user", in: "spiffe://u@td/ns/a/sa/b", err: `parse identity "spiffe://u@td/ns/a/sa/b": parse trust domain "u@td": character '@' at 1 is not allowed`},
		{name: "query", in: "spiffe://td/ns/a/sa/b?c", err: `parse identity "spiffe://td/ns/a/sa/b?c": make identity: service account: character '?' at 1 is not allowed`},
		{name: "fragment", in: "spiffe://td/ns/a/sa/b#c", err: `parse identity "spiffe://td/ns/a/sa/b#c": make identity: service account: character '#' at 1 is not allowed`},
		{name: "escape", in: "spiffe://td/ns/a%2Fb/sa/c", err: `parse identity "spiffe://td/ns/a%2Fb/sa/c": make identity: namespace: character '%' at 1 is not allowed`},
		{name: "newline", in: "spiffe://td/ns/a/sa/b\n", err: `parse identity "spiffe://td/ns/a/sa/b\n": make identity: service account: character '\n' at 1 is not allowed`},
		{name: "nul", in: "spiffe://td/ns/a\x00/sa/b", err: `parse identity "spiffe://td/ns/a\x00/sa/b": make identity: namespace: character '\x00' at 1 is not allowed`},
		{name: "too_long", in: "spiffe://td/ns/a/sa/" + long, err: "parse identity: 2068 octets, limit is 2048"},
		{name: "trust_domain_too_long", in: "spiffe://" + long[:256] + "/ns/a/sa/b", err: `parse identity "spiffe://` + long[:256] + `/ns/a/sa/b": parse trust domain: 256 octets, limit is 255`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			id, err := identity.Parse(tt.in)
			if tt.err != "" {
				if err == nil || err.Error() != tt.err {
					t.Fatalf("got %v, error %v; want error %s", id, err, tt.err)
				}
				if !id.IsZero() {
					t.Errorf("got %v beside an error", id)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got := id.TrustDomain().String() + " " + id.Namespace() + " " + id.ServiceAccount()
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if id.String() != tt.in || id.URL().String() != tt.in || "spiffe://"+id.Principal() != tt.in || string(id.AppendPrincipal([]byte("x"))) != "x"+id.Principal() {
				t.Errorf("string %q, URL %q, principal %q", id, id.URL(), id.Principal())
			}
			if id != identity.MustParse(tt.in) {
				t.Error("two parses are not equal")
			}
		})
	}
}

func TestNewRefuses(t *testing.T) {
	td := identity.MustTrustDomain("td")
	tests := []struct {
		name   string
		td     identity.TrustDomain
		ns, sa string
	}{
		{"no_trust_domain", identity.TrustDomain{}, "a", "b"},
		{"no_namespace", td, "", "b"},
		{"no_service_account", td, "a", ""},
		{"slash_in_namespace", td, "a/sa/b", "c"},
		{"slash_in_service_account", td, "a", "b/c"},
		{"too_long", td, "a", strings.Repeat("b", 2048)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if id, err := identity.New(tt.td, tt.ns, tt.sa); err == nil {
				t.Errorf("got %v, want an error", id)
			}
		})
	}
}

func TestZeroIsNothing(t *testing.T) {
	var id identity.ID
	if !id.IsZero() || id.String() != "" || id.Principal() != "" || len(id.AppendPrincipal(nil)) > 0 || id.URL() != nil {
		t.Errorf("zero ID shows as %q, %q, %v", id.String(), id.Principal(), id.URL())
	}
	var td identity.TrustDomain
	if !td.IsZero() || td.String() != "" {
		t.Errorf("zero trust domain shows as %q", td)
	}
}

// FuzzParse checks that whatever parses comes back octet for octet, and reads
// the same through net/url and a certificate's way of writing it.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"", "spiffe://", "spiffe://td/ns/a/sa/b", "spiffe://td/ns//sa/", "spiffe://td/ns/a/sa/b/", "spiffe://t%64/ns/a/sa/b",
		"spiffe://td/ns/a/sa/b?x#y", "SPIFFE://td/ns/a/sa/b", "spiffe://td:80/ns/./sa/..",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := identity.Parse(s)
		if err != nil {
			if !id.IsZero() {
				t.Fatalf("%q: error and an identity", s)
			}
			return
		}
		if id.String() != s {
			t.Fatalf("%q came back as %q", s, id)
		}
		again, err := identity.New(id.TrustDomain(), id.Namespace(), id.ServiceAccount())
		if err != nil || again != id {
			t.Fatalf("%q: rebuilt as %v, error %v", s, again, err)
		}
		u, err := url.Parse(s)
		if err != nil || u.String() != s || *u != *id.URL() {
			t.Fatalf("%q: as a URL %v, error %v", s, u, err)
		}
	})
}

// FuzzParseCertificates checks that no text makes the parser fall over, and
// that it never returns an empty set without an error.
func FuzzParseCertificates(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"))
	f.Add([]byte("text\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\ntext"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var certs []*x509.Certificate
		var err error
		if certs, err = identity.ParseCertificates(b); err == nil && len(certs) == 0 {
			t.Fatal("neither certificates nor an error")
		}
	})
}
