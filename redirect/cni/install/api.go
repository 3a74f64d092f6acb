package install

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	"github.com/culvert-mesh/culvert/redirect/cni"
)

// Sizes in bytes of what the API file is made of.
const (
	maxCA    = 512 << 10
	maxToken = 64 << 10
)

// ensureAPI writes the API file if it is not there or its content is another one.
// Errors never have the token in them.
func (i *Installer) ensureAPI() error {
	path := filepath.Join(i.cfg.RunDir, APIFile)
	text, err := i.apiText()
	if err == nil {
		var there []byte
		there, err = readFile(path, maxCA+maxToken+1024)
		if err == nil && bytes.Equal(there, text) && private(path) {
			return nil
		}
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			err = i.put(path, 0o600, bytes.NewReader(text))
		}
	}
	if err != nil {
		return fmt.Errorf("write API server's address for the CNI plugin: %w", err)
	}
	return nil
}

func (i *Installer) apiText() ([]byte, error) {
	if u, err := url.Parse(i.cfg.Server); err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("API server %.100q is not a https URL", i.cfg.Server)
	}
	ca, err := readFile(i.cfg.CAFile, maxCA)
	if err != nil {
		return nil, err
	}
	if block, _ := pem.Decode(ca); block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("%s has no certificate", i.cfg.CAFile)
	}
	token, err := readFile(i.cfg.TokenFile, maxToken)
	if err != nil {
		return nil, err
	}
	token = bytes.TrimSpace(token)
	if len(token) == 0 || bytes.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, fmt.Errorf("%s has no token", i.cfg.TokenFile)
	}
	return json.Marshal(cni.APIServer{Server: i.cfg.Server, CA: string(ca), Token: string(token)})
}

func private(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode() == 0o600
}
