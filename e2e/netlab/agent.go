package netlab

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/redirect/topology"
)

// Agent is a culvert-node process on a node, or in the pod that it is dedicated to.
type Agent struct {
	place   place
	process *topology.Process
	log     string
	killed  bool
}

// place is where an agent runs: a node or a pod.
type place interface {
	Name() string
	Start(cmd *exec.Cmd) (*topology.Process, error)
	Dial(ctx context.Context, network, address string) (net.Conn, error)
}

func (a *Agent) start(binary string, args []string) error {
	out, err := os.OpenFile(a.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("start agent: %w", err)
	}
	defer func() { _ = out.Close() }()
	cmd := exec.Command(binary, args...)
	cmd.Stdout, cmd.Stderr = out, out
	if a.process, err = a.place.Start(cmd); err != nil {
		return fmt.Errorf("start agent on %s: %w", a.place.Name(), err)
	}
	return nil
}

// Process is the agent's process.
func (a *Agent) Process() *topology.Process { return a.process }

// Stop asks the agent to drain and end, and kills it after 20 s. One that was killed before has ended well.
func (a *Agent) Stop() error {
	if a.killed {
		return nil
	}
	return a.process.Stop(20 * time.Second)
}

// Kill ends the agent without giving it a chance to do anything, and waits for its end.
func (a *Agent) Kill() {
	a.killed = true
	_ = a.process.Signal(os.Kill) // the only failure is that it has ended already
	<-a.process.Done()
}

// WaitReady waits until the agent says that it is ready. The error has the end of the agent's log.
func (a *Agent) WaitReady(timeout time.Duration) error {
	return a.Wait(timeout, "ready", func() (bool, error) {
		status, _, err := a.Get("15021", "/healthz/ready")
		return err == nil && status == http.StatusOK, nil
	})
}

// Wait polls until done says so, the agent ends or the time is over.
func (a *Agent) Wait(timeout time.Duration, what string, done func() (bool, error)) error {
	for deadline := time.Now().Add(timeout); ; time.Sleep(20 * time.Millisecond) {
		ok, err := done()
		if err != nil || ok {
			return err
		}
		select {
		case <-a.process.Done():
			ended := cmp.Or(a.process.Wait(), errors.New("exit status 0"))
			return fmt.Errorf("agent on %s ended: %w\n%s", a.place.Name(), ended, a.tail())
		default:
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("agent on %s is not %s after %v\n%s", a.place.Name(), what, timeout, a.tail())
		}
	}
}

func (a *Agent) tail() string {
	text := a.Log()
	if len(text) > 4000 {
		text = text[len(text)-4000:]
	}
	return text
}

// Log returns what the agent has written.
func (a *Agent) Log() string {
	text, err := os.ReadFile(a.log)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// Get asks one of the agent's HTTP servers on the loopback address of where it runs.
func (a *Agent) Get(port, path string) (status int, body string, err error) {
	return a.do(http.MethodGet, port, path)
}

// Post is Get with POST.
func (a *Agent) Post(port, path string) (status int, body string, err error) {
	return a.do(http.MethodPost, port, path)
}

func (a *Agent) do(method, port, path string) (int, string, error) {
	transport := &http.Transport{DialContext: a.place.Dial, DisableKeepAlives: true}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://127.0.0.1:"+port+path, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	return resp.StatusCode, string(body), err
}

// Record is one line of the access log.
type Record map[string]any

// Str returns a field as text, "" when it is absent.
func (r Record) Str(key string) string {
	if v, ok := r[key]; ok {
		return fmt.Sprint(v)
	}
	return ""
}

// AccessLog returns the access-log lines so far, in order.
func (a *Agent) AccessLog() []Record {
	var records []Record
	lines := bufio.NewScanner(strings.NewReader(a.Log()))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r Record
		if json.Unmarshal(bytes.TrimSpace(lines.Bytes()), &r) == nil && r["scope"] == "access" {
			records = append(records, r)
		}
	}
	return records
}

// WaitRecord waits for an access-log line that match accepts.
func (a *Agent) WaitRecord(timeout time.Duration, match func(Record) bool) (Record, error) {
	var found Record
	err := a.Wait(timeout, "logging the connection", func() (bool, error) {
		for _, r := range a.AccessLog() {
			if match(r) {
				found = r
				return true, nil
			}
		}
		return false, nil
	})
	return found, err
}

// Metric returns the sum of the samples of a metric whose labels contain all of the given `name="value"` texts.
func (a *Agent) Metric(name string, labels ...string) (float64, error) {
	_, body, err := a.Get("15020", "/metrics")
	if err != nil {
		return 0, err
	}
	sum := 0.0
	for line := range strings.Lines(body) {
		series, value, ok := cutLast(strings.TrimSpace(line), " ")
		if !ok || (series != name && !strings.HasPrefix(series, name+"{")) || !containsAll(series, labels) {
			continue
		}
		var v float64
		if _, err := fmt.Sscan(value, &v); err != nil {
			return 0, errors.New("metric " + line + " has no value")
		}
		sum += v
	}
	return sum, nil
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

func containsAll(s string, parts []string) bool {
	for _, p := range parts {
		if !strings.Contains(s, p) {
			return false
		}
	}
	return true
}
