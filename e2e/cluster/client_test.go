package cluster

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/intstr"
)

func portNumber(n int32) intstr.IntOrString { return intstr.FromInt32(n) }

// kubectlCommand is a kubectl for the cluster under test.
func kubectlCommand(ctx context.Context, args ...string) *exec.Cmd {
	program := shared.program("kubernetes/kubectl")
	if _, err := os.Stat(program); err != nil {
		program = "kubectl"
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = shared.clientEnv()
	return cmd
}

// clientEnv is the environment of programs that talk to the cluster.
func (e *environment) clientEnv() []string {
	env := append(os.Environ(), "KUBECONFIG="+e.kubeconfig)
	if e.dir != "" { // what they cache goes with the cluster
		env = append(env, "KUBECACHEDIR="+filepath.Join(e.dir, "kubectl"))
	}
	return env
}

func kubectl(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
	cmd := kubectlCommand(ctx, args...)
	cmd.Stdin = stdin
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return strings.TrimSpace(string(out)), err
}

// response is the test program's account of one HTTP exchange.
type response struct {
	Status int    `json:"status"`
	Error  string `json:"error"`
	Body   who    `json:"body"`
	Text   string `json:"text"`
}

// who is what the test program's server says of itself.
type who struct {
	Pod       string `json:"pod"`
	Namespace string `json:"namespace"`
	Node      string `json:"node"`
	Remote    string `json:"remote"`
	Local     string `json:"local"`
}

// exec runs the test program inside the pod and decodes what it prints.
func (a *app) exec(into any, args ...string) error {
	ctx, cancel := context.WithTimeout(a.t.Context(), patience)
	defer cancel()
	cmd := kubectlCommand(ctx, append([]string{"exec", "-n", a.space.name, a.name, "-c", "app", "--", "testapp"}, args...)...)
	var out, diag bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &diag
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("testapp %v in %s: %w: %s", args, a.name, err, bytes.TrimSpace(diag.Bytes()))
	}
	if err := json.Unmarshal(out.Bytes(), into); err != nil {
		return fmt.Errorf("testapp %v in %s printed %q: %w", args, a.name, out.String(), err)
	}
	return nil
}

// get asks for a URL once.
func (a *app) get1(url string) (response, error) {
	var all []response
	if err := a.exec(&all, "get", url); err != nil {
		return response{}, err
	}
	if len(all) != 1 {
		return response{}, fmt.Errorf("%d responses", len(all))
	}
	return all[0], nil
}

// reach asks until the answer is 200 and returns it.
func (a *app) reach(url string) response {
	a.t.Helper()
	var r response
	wait(a.t, a.name+" gets "+url, func() error {
		var err error
		if r, err = a.get1(url); err == nil && r.Status != 200 {
			err = fmt.Errorf("status %d %s", r.Status, r.Error)
		}
		return err
	})
	return r
}

// mustGet asks once and wants 200.
func (a *app) mustGet(url string) response {
	a.t.Helper()
	r, err := a.get1(url)
	if err != nil {
		a.t.Fatal(err)
	}
	if r.Status != 200 {
		a.t.Fatalf("%s gets %s: status %d %s", a.name, url, r.Status, r.Error)
	}
	return r
}

// refused asks until there is no answer.
func (a *app) refused(url string) {
	a.t.Helper()
	wait(a.t, a.name+" is refused at "+url, func() error {
		r, err := a.get1(url)
		if err == nil && r.Error == "" {
			err = fmt.Errorf("status %d from %v", r.Status, r.Body)
		}
		return err
	})
}

// talk sends a payload to an echo server and wants it back.
func (a *app) talk(addr, payload string) error {
	var result struct {
		Bytes int    `json:"bytes"`
		Error string `json:"error"`
	}
	if err := a.exec(&result, "talk", "--payload="+payload, addr); err != nil {
		return err
	}
	if result.Error != "" || result.Bytes != len(payload) {
		return fmt.Errorf("talk with %s: %d of %d bytes came back: %s", addr, result.Bytes, len(payload), result.Error)
	}
	return nil
}

// session is a client that runs until it is stopped.
type session struct {
	t      *testing.T
	name   string
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	out    *bufio.Scanner
	diag   *bytes.Buffer
	once   sync.Once
	cancel context.CancelFunc
}

// start runs the test program in the pod until stop; it returns when the client has its connections.
func (a *app) start(args ...string) *session {
	a.t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(a.t.Context()))
	cmd := kubectlCommand(ctx, append([]string{"exec", "-i", "-n", a.space.name, a.name, "-c", "app", "--", "testapp"}, args...)...)
	s := &session{t: a.t, name: a.name + " " + strings.Join(args, " "), cmd: cmd, diag: new(bytes.Buffer), cancel: cancel}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		a.t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		a.t.Fatal(err)
	}
	s.stdin, s.out, cmd.Stderr = stdin, bufio.NewScanner(stdout), s.diag
	s.out.Buffer(nil, 1<<20)
	if err := cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() {
		s.once.Do(func() {
			cancel()
			_ = cmd.Wait() // the test has failed already
		})
	})
	if !s.out.Scan() || s.out.Text() != "open" {
		cancel()
		a.t.Fatalf("%s: %q %v: %s", s.name, s.out.Text(), s.out.Err(), s.diag)
	}
	return s
}

// stop ends the client and decodes its account.
func (s *session) stop(into any) {
	s.t.Helper()
	s.once.Do(func() {
		defer s.cancel()
		_ = s.stdin.Close() // this is what the client waits for
		timer := time.AfterFunc(patience, s.cancel)
		defer timer.Stop()
		var last string
		for s.out.Scan() {
			last = s.out.Text()
		}
		if err := s.cmd.Wait(); err != nil {
			s.t.Fatalf("%s: %v: %s", s.name, err, s.diag)
		}
		if err := json.Unmarshal([]byte(last), into); err != nil {
			s.t.Fatalf("%s printed %q: %v", s.name, last, err)
		}
	})
}

// held is the account of connections that talked for long.
type held struct {
	Conns  int      `json:"conns"`
	Rounds int64    `json:"rounds"`
	Bytes  int64    `json:"bytes"`
	Errors []string `json:"errors"`
}

// loaded is the account of many requests on new connections.
type loaded struct {
	Requests int64          `json:"requests"`
	Failed   int64          `json:"failed"`
	Statuses map[string]int `json:"statuses"`
	Errors   []string       `json:"errors"`
	Pods     map[string]int `json:"pods"`
}

// hold keeps connections talking to an echo server.
func (a *app) hold(conns int, addr string) *session {
	a.t.Helper()
	return a.start("hold", fmt.Sprintf("--conns=%d", conns), addr)
}

// unbroken ends held connections and wants all of them to have worked to their clean end.
func (s *session) unbroken() held {
	s.t.Helper()
	var h held
	s.stop(&h)
	if len(h.Errors) > 0 || h.Rounds < int64(h.Conns) {
		s.t.Errorf("%s: %d rounds on %d connections, broken: %v", s.name, h.Rounds, h.Conns, h.Errors)
	}
	return h
}

// faultless ends a load and wants no request to have failed.
func (s *session) faultless() loaded {
	s.t.Helper()
	var l loaded
	s.stop(&l)
	if l.Failed > 0 || l.Requests == 0 {
		s.t.Errorf("%s: %d of %d requests failed: %v", s.name, l.Failed, l.Requests, l.Errors)
	}
	return l
}
