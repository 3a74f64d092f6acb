package inspect_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"github.com/culvert-mesh/culvert/cmd/internal/access"
	"github.com/culvert-mesh/culvert/cmd/internal/inspect"
)

// apiServer forwards ports as an API server does, over SPDY, to a handler of streams.
func apiServer(t *testing.T, serve func(errors, data httpstream.Stream)) *access.Access {
	t.Helper()
	var wg sync.WaitGroup
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if want := "/api/v1/namespaces/mesh/pods/a1/portforward"; r.URL.Path != want {
			http.Error(w, "no such pod", http.StatusNotFound)
			return
		}
		if strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
			http.Error(w, "this server is old", http.StatusBadRequest)
			return
		}
		if _, err := httpstream.Handshake(r, w, []string{"portforward.k8s.io"}); err != nil {
			return
		}
		streams := make(chan httpstream.Stream, 2)
		conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(s httpstream.Stream, _ <-chan struct{}) error {
			streams <- s
			return nil
		})
		if conn == nil {
			return
		}
		wg.Add(1)
		defer wg.Done()
		defer conn.Close()
		first, second := <-streams, <-streams
		if first.Headers().Get("port") != "15000" {
			fmt.Fprintf(first, "wrong port %s", first.Headers().Get("port"))
		}
		serve(first, second)
		<-conn.CloseChan()
	}))
	t.Cleanup(func() {
		server.CloseClientConnections()
		wg.Wait()
		server.Close()
	})
	a, err := access.Connect(configured{&rest.Config{Host: server.URL}})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

type configured struct{ *rest.Config }

func (c configured) ToRESTConfig() (*rest.Config, error) { return c.Config, nil }

func TestForward(t *testing.T) {
	tests := []struct {
		name  string
		serve func(errors, data httpstream.Stream)
		want  string
		fails string
	}{
		{"answer", func(_, data httpstream.Stream) {
			r, err := http.ReadRequest(bufio.NewReader(data))
			if err != nil || r.Host != "localhost" || r.URL.Path != "/plaintext" {
				fmt.Fprintf(data, "HTTP/1.1 400 Bad Request\r\n\r\n")
			}
			body := strings.Repeat("x", 100_000)
			fmt.Fprintf(data, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		}, strings.Repeat("x", 100_000), ""},
		{"unknown-path", func(_, data httpstream.Stream) {
			_, _ = http.ReadRequest(bufio.NewReader(data))
			fmt.Fprint(data, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
		}, "", "of an older version"},
		{"error", func(_, data httpstream.Stream) {
			_, _ = http.ReadRequest(bufio.NewReader(data))
			fmt.Fprint(data, "HTTP/1.1 500 Oops\r\nContent-Length: 6\r\n\r\nbroken")
		}, "", "500 Oops: broken"},
		{"nobody-listens", func(errors, data httpstream.Stream) {
			fmt.Fprint(errors, "dial tcp 127.0.0.1:15000: connection refused")
			_ = errors.Close()
			_ = data.Close()
		}, "", "connection refused"},
		{"nonsense", func(errors, data httpstream.Stream) {
			_ = errors.Close()
			_, _ = io.WriteString(data, "SSH-2.0\r\n\r\n")
			_ = data.Close()
		}, "", "read answer"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := apiServer(t, tt.serve)
			body, err := inspect.NewAgents(a).Get(t.Context(), "mesh", "a1", "/plaintext")
			switch {
			case tt.fails == "" && (err != nil || string(body) != tt.want):
				t.Errorf("got %d bytes, %v", len(body), err)
			case tt.fails != "" && (err == nil || !strings.Contains(err.Error(), tt.fails)):
				t.Errorf("got %v, want %q", err, tt.fails)
			}
		})
	}
	t.Run("no-pod", func(t *testing.T) {
		a := apiServer(t, nil)
		if _, err := inspect.NewAgents(a).Get(t.Context(), "mesh", "a2", "/"); err == nil || !strings.Contains(err.Error(), "no such pod") {
			t.Errorf("got %v", err)
		}
	})
}

// TestForwardWithoutAnswer: a kubelet that takes the connection and says nothing keeps nobody for longer than they asked.
func TestForwardWithoutAnswer(t *testing.T) {
	asked, over := make(chan struct{}), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(asked)
		select {
		case <-over:
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(server.Close)
	t.Cleanup(func() { close(over) })
	a, err := access.Connect(configured{&rest.Config{Host: server.URL}})
	if err != nil {
		t.Fatal(err)
	}
	slow := errors.New("no answer in time")
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := inspect.NewAgents(a).Get(ctx, "mesh", "a1", "/plaintext")
		ended <- err
	}()
	<-asked
	cancel(slow)
	select {
	case err := <-ended:
		if !errors.Is(err, slow) {
			t.Errorf("got %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it waits on, though its time is over")
	}
}
