package admin_test

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/cmd/internal/admin"
)

// pipes is a listener of connections without buffers; those of its server's side tell of deadlines for writing.
type pipes struct {
	conns chan net.Conn
	ended chan struct{}
}

func newPipes() *pipes { return &pipes{make(chan net.Conn), make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.ended:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { close(p.ended); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 15020} }

type deadlined struct {
	net.Conn
	set chan time.Time
}

func (d deadlined) SetWriteDeadline(t time.Time) error {
	select {
	case d.set <- t:
	default:
	}
	return d.Conn.SetWriteDeadline(t)
}

// get sends a request whose answer nobody reads yet.
func (p *pipes) get(t *testing.T, path string) (client net.Conn, deadline chan time.Time) {
	t.Helper()
	client, server := net.Pipe()
	t.Cleanup(func() { _ = client.Close() })
	deadline = make(chan time.Time, 1)
	p.conns <- deadlined{server, deadline}
	if _, err := fmt.Fprintf(client, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", path); err != nil {
		t.Fatal(err)
	}
	return client, deadline
}

// TestClientsThatDoNotRead: anybody in the cluster may ask for metrics, and what a scrape is made of stays in memory until
// its answer is written.
func TestClientsThatDoNotRead(t *testing.T) {
	long := strings.Repeat("x", 64<<10)
	gatherer := admin.Samples(func(emit func(admin.Sample)) { emit(admin.Sample{Name: "a", Help: long, Value: 1}) })
	metrics, health := newPipes(), newPipes()
	serve(t, admin.Config{MetricsListener: metrics, HealthListener: health, Gatherer: gatherer, Readiness: new(admin.Readiness)})
	for _, l := range []*pipes{metrics, health} {
		for range 4 { // stay for as long as they may
			client, deadline := l.get(t, "/metrics")
			if _, err := client.Read(make([]byte, 1)); err != nil { // the answer has begun
				t.Fatal(err)
			}
			select {
			case at := <-deadline:
				if at.IsZero() || time.Until(at) > time.Minute {
					t.Errorf("an answer that nobody reads may take until %v", at)
				}
			default:
				t.Fatal("an answer that nobody reads may take for ever")
			}
		}
		client, _ := l.get(t, "/metrics")
		answer, err := http.ReadResponse(bufio.NewReader(client), nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = answer.Body.Close()
		if answer.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("one scrape more: %s", answer.Status)
		}
	}
}
