package cni

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/culvert-mesh/culvert/redirect/handoff"
	"github.com/culvert-mesh/culvert/redirect/selector"
)

// errAway says that the agent did not answer.
var errAway = errors.New("the node's agent is not there or does not answer")

// Sizes in bytes. An object of Kubernetes has at most 1.5 MiB in its store.
const (
	maxAPIFile = 1 << 20
	maxToken   = 64 << 10
	maxObject  = 8 << 20
)

// APIServer is what Config.APIFile has as JSON: how to reach the API server, with the
// token that it has or, without one, with that of a file of the host.
type APIServer struct {
	Server    string `json:"server"` // a https URL
	CA        string `json:"caPEM"`
	Token     string `json:"token"`
	TokenFile string `json:"tokenFile,omitempty"`
}

// object is what is read of a pod or a namespace.
type object struct {
	Metadata struct {
		UID         string            `json:"uid"`
		Labels      map[string]string `json:"labels"`
		Annotations map[string]string `json:"annotations"`
	} `json:"metadata"`
	Spec struct {
		HostNetwork bool `json:"hostNetwork"`
	} `json:"spec"`
}

// lookUp asks the API server whether the pod is to be in the mesh by the selectors, nil for the default ones.
func lookUp(ctx context.Context, path string, p handoff.CNIPod, selectors []selector.Selector) (in bool, why string, err error) {
	file, err := readAPIFile(path)
	if err != nil {
		return false, "", err
	}
	client, err := newClient(file)
	if err != nil {
		return false, "", fmt.Errorf("read %s: %w", path, err)
	}
	defer client.http.CloseIdleConnections()
	namespacePath := "/api/v1/namespaces/" + url.PathEscape(p.Namespace)
	pod, err := client.get(ctx, namespacePath+"/pods/"+url.PathEscape(p.Name))
	if err != nil {
		return false, "", fmt.Errorf("get pod %s: %w", p, err)
	}
	// The file of a static pod has another UID than the object that mirrors it.
	if m := pod.Metadata; p.UID != "" && p.UID != m.UID && p.UID != m.Annotations["kubernetes.io/config.hash"] {
		return false, "", fmt.Errorf("get pod %s: it has UID %.80q, and the one that starts has %q", p, m.UID, p.UID)
	}
	namespace, err := client.get(ctx, namespacePath)
	if err != nil {
		return false, "", fmt.Errorf("get namespace %s: %w", p.Namespace, err)
	}
	in, why = selected(pod, namespace, selectors)
	return in, why, nil
}

// selected decides by the selectors, nil for the default ones.
func selected(pod, namespace object, selectors []selector.Selector) (in bool, why string) {
	if pod.Spec.HostNetwork {
		return false, "it uses the host's network"
	}
	if _, ok := pod.Metadata.Annotations["sidecar.istio.io/status"]; ok {
		return false, "it has a sidecar"
	}
	if by := selector.Matching(selectors, pod.Metadata.Labels, namespace.Metadata.Labels); by != nil {
		return true, by.String()
	}
	return false, "no selector takes the labels of pod and namespace"
}

func readAPIFile(path string) (APIServer, error) {
	b, err := readBounded(path, maxAPIFile)
	if err != nil {
		return APIServer{}, fmt.Errorf("find the API server: %w", err)
	}
	var f APIServer
	if json.Unmarshal(b, &f) != nil { // its error could quote the token
		return APIServer{}, fmt.Errorf("find the API server: %s is not the JSON that it should be", path)
	}
	if f.Token == "" && f.TokenFile != "" {
		token, err := readBounded(f.TokenFile, maxToken)
		if err != nil {
			return APIServer{}, fmt.Errorf("read token for the API server: %w", err)
		}
		f.Token = string(token)
	}
	f.Token = strings.TrimSpace(f.Token)
	return f, nil
}

func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s is longer than %d bytes", path, limit)
	}
	return b, err
}

type apiClient struct {
	server *url.URL
	token  string
	http   *http.Client
}

func newClient(f APIServer) (*apiClient, error) {
	server, err := url.Parse(f.Server)
	if err != nil || server.Scheme != "https" || server.Host == "" {
		return nil, fmt.Errorf("server %.100q is not a https URL", f.Server)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(f.CA)) {
		return nil, errors.New("caPEM has no certificate")
	}
	if f.Token == "" {
		return nil, errors.New("there is no token")
	}
	return &apiClient{server: server, token: f.Token, http: &http.Client{
		Transport: &http.Transport{ // no proxy: the environment is the runtime's
			TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// get reads one object.
func (c *apiClient) get(ctx context.Context, path string) (object, error) {
	u := c.server.JoinPath(path)
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return object{}, err
	}
	r.Header.Set("Authorization", "Bearer "+c.token)
	r.Header.Set("Accept", "application/json")
	answer, err := c.http.Do(r)
	if err != nil {
		return object{}, err
	}
	defer func() { _ = answer.Body.Close() }()
	switch answer.StatusCode {
	case http.StatusOK:
	case http.StatusUnauthorized, http.StatusForbidden:
		return object{}, fmt.Errorf("API server refuses the plugin's token: %.80s (the agent renews it in a running node)", answer.Status)
	default:
		return object{}, fmt.Errorf("API server answers %.80s", answer.Status)
	}
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxObject+1))
	if err != nil {
		return object{}, err
	}
	if len(body) > maxObject {
		return object{}, fmt.Errorf("API server's answer is longer than %d bytes", maxObject)
	}
	var o object
	if err := json.Unmarshal(body, &o); err != nil {
		return object{}, fmt.Errorf("parse API server's answer: %w", err)
	}
	if o.Metadata.UID == "" {
		return object{}, errors.New("API server's answer is no object")
	}
	return o, nil
}
