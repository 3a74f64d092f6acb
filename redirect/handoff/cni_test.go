package handoff_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/redirect/handoff"
	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/netnstest"
)

// node is a Handler that serves the CNI plugin, too.
type node struct {
	pods
	enrolled bool
	err      error
	got      chan call
}

type call struct {
	Op    string
	Pod   handoff.CNIPod
	Inode uint64 // zero without a namespace
}

func (n *node) note(op string, pod handoff.CNIPod, ns *netns.NS) error {
	c := call{Op: op, Pod: pod}
	if ns != nil {
		c.Inode = ns.Inode()
		_ = ns.Close()
	}
	n.got <- c
	return n.err
}

func (n *node) CNIAdd(_ context.Context, pod handoff.CNIPod, ns *netns.NS) (bool, error) {
	return n.enrolled, n.note("add", pod, ns)
}

func (n *node) CNICheck(_ context.Context, pod handoff.CNIPod, ns *netns.NS) (bool, error) {
	return n.enrolled, n.note("check", pod, ns)
}

func (n *node) CNIDel(_ context.Context, pod handoff.CNIPod, ns *netns.NS) error {
	return n.note("del", pod, ns)
}

func (n *node) CNIStatus(context.Context) error { return n.note("status", handoff.CNIPod{}, nil) }

var bob = handoff.CNIPod{
	Namespace: "shop", Name: "bob-1", UID: "6f1c",
	Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.7"), netip.MustParseAddr("fd00::7")},
}

func TestCNI(t *testing.T) {
	ns := netnstest.New(t)
	noAddress := bob
	noAddress.Addresses = nil
	tests := []struct {
		name string
		ask  func(ctx context.Context, c *handoff.Client) (bool, error)
		want call
	}{
		{"add", func(ctx context.Context, c *handoff.Client) (bool, error) { return c.CNIAdd(ctx, bob, ns) },
			call{"add", bob, ns.Inode()}},
		{"add_without_uid", func(ctx context.Context, c *handoff.Client) (bool, error) {
			return c.CNIAdd(ctx, handoff.CNIPod{Namespace: "shop", Name: "bob-1"}, ns)
		}, call{"add", handoff.CNIPod{Namespace: "shop", Name: "bob-1"}, ns.Inode()}},
		{"check", func(ctx context.Context, c *handoff.Client) (bool, error) { return c.CNICheck(ctx, bob, ns) },
			call{"check", bob, ns.Inode()}},
		{"del", func(ctx context.Context, c *handoff.Client) (bool, error) { return true, c.CNIDel(ctx, noAddress, ns) },
			call{"del", noAddress, ns.Inode()}},
		{"del_without_namespace", func(ctx context.Context, c *handoff.Client) (bool, error) { return true, c.CNIDel(ctx, noAddress, nil) },
			call{"del", noAddress, 0}},
		{"status", func(ctx context.Context, c *handoff.Client) (bool, error) { return true, c.CNIStatus(ctx) },
			call{"status", handoff.CNIPod{}, 0}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := &node{enrolled: true, got: make(chan call, 1)}
			c := dial(t, serve(t, handoff.Config{Handler: n}))
			enrolled, err := tt.ask(t.Context(), c)
			if err != nil || !enrolled {
				t.Fatalf("answer %v, %v", enrolled, err)
			}
			if diff := cmp.Diff(tt.want, <-n.got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Errorf("handler got (-want +got):\n%s", diff)
			}
			n = &node{err: errors.New("port 15001 is taken"), got: make(chan call, 1)}
			c = dial(t, serve(t, handoff.Config{Handler: n}))
			enrolled, err = tt.ask(t.Context(), c)
			var remote *handoff.RemoteError
			if !errors.As(err, &remote) || remote.Text != "port 15001 is taken" || enrolled && strings.HasPrefix(tt.name, "add") {
				t.Errorf("answer %v, %v, want the handler's error", enrolled, err)
			}
		})
	}
}

func TestCNINotEnrolled(t *testing.T) {
	n := &node{got: make(chan call, 2)}
	c := dial(t, serve(t, handoff.Config{Handler: n}))
	ns := netnstest.New(t)
	if enrolled, err := c.CNIAdd(t.Context(), bob, ns); enrolled || err != nil {
		t.Errorf("CNIAdd = %v, %v", enrolled, err)
	}
	if enrolled, err := c.CNICheck(t.Context(), bob, ns); enrolled || err != nil {
		t.Errorf("CNICheck = %v, %v", enrolled, err)
	}
}

// TestCNINotServed: an agent that is not of a Kubernetes node says so, and lets no pod
// pass by it.
func TestCNINotServed(t *testing.T) {
	c := dial(t, serve(t, handoff.Config{Handler: &pods{}}))
	ns := netnstest.New(t)
	_, add := c.CNIAdd(t.Context(), bob, ns)
	_, check := c.CNICheck(t.Context(), bob, ns)
	for name, err := range map[string]error{
		"add": add, "check": check, "del": c.CNIDel(t.Context(), bob, ns), "status": c.CNIStatus(t.Context()),
	} {
		if err == nil || !strings.Contains(err.Error(), "cni-"+name+" is not served by this agent") {
			t.Errorf("%s = %v", name, err)
		}
	}
}

// TestCNIAnswerSaysNothing: an answer without the member must not read as "not
// enrolled".
func TestCNIAnswerSaysNothing(t *testing.T) {
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: t.TempDir() + "/s", Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.AcceptUnix()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = c.Read(make([]byte, handoff.MaxRequest))
		_, _ = c.Write([]byte(`{"v":1}`))
	}()
	_, err = dial(t, l.Addr().String()).CNIAdd(t.Context(), bob, netnstest.New(t))
	if err == nil || !strings.Contains(err.Error(), "does not say") {
		t.Errorf("CNIAdd = %v", err)
	}
}

func TestHostileCNIMessages(t *testing.T) {
	ns := netnstest.New(t)
	var nsfd int
	if err := ns.Control(func(fd int) error { nsfd = fd; return nil }); err != nil {
		t.Fatal(err)
	}
	pod := `"pod":{"namespace":"ns","name":"n"}`
	tests := []struct {
		name, body string
		fds        []int
		want       string
	}{
		{"add_without_pod", `{"v":1,"op":"cni-add"}`, []int{nsfd}, "names no pod"},
		{"add_without_descriptor", `{"v":1,"op":"cni-add",` + pod + `}`, nil, "got 0"},
		{"add_with_two", `{"v":1,"op":"cni-add",` + pod + `}`, []int{nsfd, nsfd}, "got 2"},
		{"check_without_descriptor", `{"v":1,"op":"cni-check",` + pod + `}`, nil, "got 0"},
		{"del_with_two", `{"v":1,"op":"cni-del",` + pod + `}`, []int{nsfd, nsfd}, "at most one"},
		{"del_with_pipe", `{"v":1,"op":"cni-del",` + pod + `}`, []int{0}, "not a network namespace"},
		{"status_with_descriptor", `{"v":1,"op":"cni-status"}`, []int{nsfd}, "takes no descriptor"},
		{"bad_name", `{"v":1,"op":"cni-add","pod":{"namespace":"ns","name":"../n"}}`, []int{nsfd}, "is not allowed"},
		{"bad_uid", `{"v":1,"op":"cni-add","pod":{"namespace":"ns","name":"n","uid":"u u"}}`, []int{nsfd}, "is not allowed"},
		{"bad_address", `{"v":1,"op":"cni-add",` + pod + `,"addresses":["300.1.1.1"]}`, []int{nsfd}, "parse request"},
		{"zone", `{"v":1,"op":"cni-add",` + pod + `,"addresses":["fe80::1%eth0"]}`, []int{nsfd}, "is not one of a pod"},
		{"unspecified", `{"v":1,"op":"cni-add",` + pod + `,"addresses":["0.0.0.0"]}`, []int{nsfd}, "is not one of a pod"},
		{"many_addresses", `{"v":1,"op":"cni-add",` + pod + `,"addresses":["1.1.1.1"` + strings.Repeat(`,"1.1.1.1"`, 40) + `]}`, []int{nsfd}, "more than 32"},
	}
	n := &node{got: make(chan call, len(tests))}
	path := serve(t, handoff.Config{Handler: n})
	before := openFiles(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := net.Dial("unixpacket", path)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			var oob []byte
			if len(tt.fds) > 0 {
				oob = unix.UnixRights(tt.fds...)
			}
			if _, _, err := c.(*net.UnixConn).WriteMsgUnix([]byte(tt.body), oob, nil); err != nil {
				t.Fatal(err)
			}
			_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
			buf := make([]byte, handoff.MaxResponse)
			k, err := c.Read(buf)
			if err != nil || !strings.Contains(string(buf[:k]), tt.want) {
				t.Errorf("answer %q, %v, want %q in it", buf[:k], err, tt.want)
			}
		})
	}
	if len(n.got) != 0 {
		t.Errorf("handler was called: %+v", <-n.got)
	}
	for deadline := time.Now().Add(30 * time.Second); openFiles(t) > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d descriptors are open, %d before", openFiles(t), before)
		}
	}
}
