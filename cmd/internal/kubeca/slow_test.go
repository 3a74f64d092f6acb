package kubeca_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/culvert-mesh/culvert/cmd/internal/kubeca"
	"github.com/culvert-mesh/culvert/identity/ca/authority"
)

// slowServer is an API server with Secrets and ConfigMaps that takes its time for each request.
type slowServer struct {
	takes time.Duration

	mu      sync.Mutex
	version int
	objects map[string]map[string]any
}

// RoundTrip implements http.RoundTripper.
func (s *slowServer) RoundTrip(r *http.Request) (*http.Response, error) {
	var body []byte
	if r.Body != nil {
		body, _ = io.ReadAll(r.Body)
		r.Body.Close()
	}
	timer := time.NewTimer(s.takes)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	at := r.URL.Path
	var o map[string]any
	if len(body) > 0 {
		if err := json.Unmarshal(body, &o); err != nil {
			return nil, err
		}
		meta := o["metadata"].(map[string]any)
		if r.Method == http.MethodPost {
			at = path.Join(at, meta["name"].(string))
		}
		s.version++
		meta["resourceVersion"] = fmt.Sprint(s.version)
		s.objects[at] = o
	} else {
		o = s.objects[at]
	}
	code := http.StatusOK
	if o == nil {
		code = http.StatusNotFound
		o = map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
	}
	b, err := json.Marshal(o)
	return &http.Response{
		StatusCode: code, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(b)), Request: r,
	}, err
}

// An API server that takes three seconds for each answer is slow, but it answers. A certificate that is revoked has to get on
// the list all the same.
func TestLeadGoesOnWithASlowAPIServer(t *testing.T) {
	for _, takes := range []time.Duration{100 * time.Millisecond, 3 * time.Second} {
		t.Run(takes.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := &slowServer{takes: takes, objects: make(map[string]map[string]any)}
				cfg := &rest.Config{Host: "http://api", Transport: server, QPS: 100, Burst: 200}
				cfg.ContentType = "application/json"
				client, err := kubernetes.NewForConfig(cfg)
				if err != nil {
					t.Fatal(err)
				}
				ca, err := kubeca.New(kubeca.Config{Client: client, Namespace: namespace, Authority: authority.Config{TrustDomain: td}})
				if err != nil {
					t.Fatal(err)
				}
				run(t, ca.Run, ca.Lead)
				<-ca.Ready()
				ctx := t.Context()
				secret, err := client.CoreV1().Secrets(namespace).Get(ctx, kubeca.SecretName, metav1.GetOptions{})
				if err != nil {
					t.Fatal(err)
				}
				secret = secret.DeepCopy()
				secret.Data[kubeca.RevokedSerials] = []byte("BEEF\n")
				if _, err := client.CoreV1().Secrets(namespace).Update(ctx, secret, metav1.UpdateOptions{}); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Hour) // of the bubble
				published, err := client.CoreV1().ConfigMaps(namespace).Get(ctx, kubeca.RevokedName, metav1.GetOptions{})
				if err != nil || !strings.Contains(published.Data[kubeca.RevokedKey], "X509 CRL") {
					t.Errorf("an hour later the certificate is on no list (%v); trouble of the authority: %v", err, ca.Status().Trouble)
				}
			})
		})
	}
}
