package kube

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"sigs.k8s.io/yaml"
)

// The configuration of every node is what its program can read.
func TestFilesParse(t *testing.T) {
	for _, p := range places() {
		var list struct {
			Plugins []struct {
				Type string `json:"type"`
			} `json:"plugins"`
		}
		if err := json.Unmarshal([]byte(cniConfig(p)), &list); err != nil || len(list.Plugins) != 2 {
			t.Errorf("CNI configuration of %s: %v %v", p.name, list, err)
		}
		for _, text := range []string{kubeletConfig(p, "/pki"), proxyConfig(p, "/kubeconfig")} {
			var v struct {
				Kind string `json:"kind"`
			}
			if err := yaml.Unmarshal([]byte(text), &v); err != nil || v.Kind == "" {
				t.Errorf("configuration of %s: %v\n%s", p.name, err, text)
			}
		}
		if p.other().name == p.name || p.addr() == p.other().addr() {
			t.Errorf("the other of %s is %s", p.name, p.other().name)
		}
	}
}

// Certificates verify against the authority, and keys belong to them.
func TestCredentials(t *testing.T) {
	c := &Cluster{cfg: Config{Dir: t.TempDir()}}
	if err := c.writeCredentials(); err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(c.pkiDir(), "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	for name, host := range map[string]string{"apiserver": "kubernetes.default.svc", "kubelet-node2": "198.18.250.2", "admin": ""} {
		pair, err := tls.LoadX509KeyPair(filepath.Join(c.pkiDir(), name+".crt"), filepath.Join(c.pkiDir(), name+".key"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: host}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	info, err := os.Stat(c.Kubeconfig())
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("kubeconfig: %v %v", info.Mode(), err)
	}
}

// Down deletes nothing but directories of clusters.
func TestDownRefuses(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Down(t.Context(), Config{Dir: dir}); err == nil {
		t.Error("a directory that is none of a cluster was taken down")
	}
	if _, err := os.Stat(filepath.Join(dir, "precious")); err != nil {
		t.Error(err)
	}
}
