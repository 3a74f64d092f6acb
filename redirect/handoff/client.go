package handoff

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/redirect/netns"
)

// RemoteError is what the agent answered instead of doing it.
type RemoteError struct {
	Text string
}

// Error returns the agent's text.
func (e *RemoteError) Error() string { return "agent: " + e.Text }

// Client talks to an agent. It is made by Dial and owned by the caller.
type Client struct {
	mu   sync.Mutex // one request at a time
	conn *net.UnixConn
}

// Dial connects to the agent's socket. ctx bounds connecting only.
func Dial(ctx context.Context, path string) (*Client, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unixpacket", path)
	if err != nil {
		return nil, fmt.Errorf("connect to agent: %w", err)
	}
	return &Client{conn: c.(*net.UnixConn)}, nil
}

// Close ends the connection; a request in progress fails.
func (c *Client) Close() error { return c.conn.Close() }

// Add hands over a pod's namespace, which stays the caller's too, and waits until
// the pod is enrolled. A *RemoteError says why it is not; the agent keeps the pod
// and goes on trying.
func (c *Client) Add(ctx context.Context, pod Pod, ns *netns.NS) error {
	if err := pod.Validate(); err != nil {
		return fmt.Errorf("add pod: %w", err)
	}
	err := ns.Control(func(fd int) error {
		_, err := c.do(ctx, request{Version: Version, Op: opAdd, Pod: &pod}, fd)
		return err
	})
	if err != nil {
		return fmt.Errorf("add pod %s: %w", pod, err)
	}
	return nil
}

// Remove takes a pod out and waits until that is done.
func (c *Client) Remove(ctx context.Context, uid string) error {
	if _, err := c.do(ctx, request{Version: Version, Op: opRemove, UID: uid}); err != nil {
		return fmt.Errorf("remove pod %s: %w", uid, err)
	}
	return nil
}

// List returns the agent's pods.
func (c *Client) List(ctx context.Context) ([]Status, error) {
	all, err := c.do(ctx, request{Version: Version, Op: opList})
	if err != nil {
		return nil, fmt.Errorf("list pods: %w", err)
	}
	return all.Pods, nil
}

// do sends one request and reads its answers. After an error other than the agent's
// own the connection is closed, because an answer may still come.
func (c *Client) do(ctx context.Context, r request, fds ...int) (all response, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.conn.SetDeadline(time.Time{})
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	defer func() {
		if err == nil {
			return
		}
		if _, remote := err.(*RemoteError); !remote {
			_ = c.conn.Close()
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
		}
	}()
	b, err := json.Marshal(r)
	if err != nil {
		return response{}, err
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := c.conn.WriteMsgUnix(b, oob, nil); err != nil {
		return response{}, err
	}
	return c.answers()
}

// answers reads what comes in answer to one request.
func (c *Client) answers() (all response, err error) {
	for {
		b, got, err := receive(c.conn, MaxResponse)
		if err != nil {
			return response{}, err
		}
		if len(got) > 0 {
			closeAll(got)
			return response{}, fmt.Errorf("answer carries a descriptor: %w", os.ErrInvalid)
		}
		answer, err := parseResponse(b)
		if err != nil {
			return response{}, err
		}
		if answer.Error != "" {
			return response{}, &RemoteError{Text: answer.Error}
		}
		all.Pods, all.Enrolled = append(all.Pods, answer.Pods...), answer.Enrolled
		if !answer.More {
			return all, nil
		}
	}
}
