package apiserver_test

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/culvert-mesh/culvert/cmd/internal/apiserver"
)

// TestServerThatRefuses: an informer tells its handler of a server that is away, and ends when told to.
func TestServerThatRefuses(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	cfg, err := apiserver.Config(kubeconfig(t, "http://"+l.Addr().String()))
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	pods := cache.NewSharedIndexInformer(
		cache.NewListWatchFromClient(client.CoreV1().RESTClient(), "pods", metav1.NamespaceAll, fields.Everything()), &corev1.Pod{}, 0, nil)
	told := make(chan error, 100)
	if err := pods.SetWatchErrorHandlerWithContext(func(_ context.Context, _ *cache.Reflector, err error) { told <- err }); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		pods.RunWithContext(ctx)
	}()
	for range 2 { // not the first time only
		select {
		case err := <-told:
			if !strings.Contains(err.Error(), "connection refused") {
				t.Errorf("told of %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("nothing was told")
		}
	}
	stop()
	select {
	case <-ended:
	case <-time.After(time.Second):
		t.Error("the informer does not end")
	}
}
