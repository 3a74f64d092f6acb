package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/culvert-mesh/culvert/redirect/topology"
)

// limited becomes another program that may have so many descriptors and no more.
func limited(args []string) error {
	if len(args) < 2 {
		return errors.New("want a number and a program")
	}
	n, err := strconv.ParseUint(args[0], 10, 32)
	if err != nil {
		return err
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: n, Max: n}); err != nil {
		return os.NewSyscallError("setrlimit", err)
	}
	return os.NewSyscallError("exec", syscall.Exec(args[1], args[1:], os.Environ()))
}

// greet begins TLS handshakes as fast as it can, without a certificate, until it is killed: a peer that costs the other
// side a signature each time and never gets in.
func greet(args []string) error {
	f := flag.NewFlagSet("greet", flag.ContinueOnError)
	clients := f.Int("clients", 16, "clients")
	if err := f.Parse(args); err != nil {
		return err
	}
	addr, err := oneAddress(f.Args())
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	for range *clients {
		wg.Go(func() {
			for {
				c, err := net.DialTimeout("tcp", addr.String(), 5*time.Second)
				if err != nil {
					time.Sleep(time.Millisecond)
					continue
				}
				_ = c.SetDeadline(time.Now().Add(5 * time.Second))
				// Whom it talks to is of no interest here.
				t := tls.Client(c, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13})
				_, _ = t.Write([]byte("PRI")) // the refusal comes behind the handshake
				var b [1]byte
				_, _ = t.Read(b[:])
				c.Close()
			}
		})
	}
	wg.Wait()
	return nil
}

// crowd is a number of connections to an echo server.
type crowd struct {
	mu       sync.Mutex
	held     []net.Conn
	refused  int // reset or closed by the other side
	hung     int // connected, and nothing came for crowdPatience
	lastText string
}

// crowdPatience is how long a connection of a crowd may take to be established and to echo a byte.
const crowdPatience = 3 * time.Second

// grow opens n more connections, at most 32 at a time, from the pods in turn to the addresses in turn.
func (c *crowd) grow(ctx context.Context, n int, pair func(i int) (*topology.Pod, netip.AddrPort)) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n || ctx.Err() != nil {
					return
				}
				pod, addr := pair(i)
				conn, err := enter(ctx, pod, addr)
				c.add(conn, err)
			}
		})
	}
	wg.Wait()
}

func (c *crowd) add(conn net.Conn, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == nil:
		c.held = append(c.held, conn)
		return
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		c.hung++
	default:
		c.refused++
	}
	c.lastText = err.Error()
}

// enter opens one connection and wants its echo.
func enter(ctx context.Context, pod *topology.Pod, addr netip.AddrPort) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, crowdPatience)
	defer cancel()
	c, err := pod.Dial(ctx, "tcp", addr.String())
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(crowdPatience))
	if err := echo(c); err != nil {
		c.Close()
		return nil, err
	}
	return c, c.SetDeadline(time.Time{})
}

// echo sends a byte and wants it back.
func echo(c net.Conn) error {
	b := [1]byte{'e'}
	if _, err := c.Write(b[:]); err != nil {
		return err
	}
	_, err := io.ReadFull(c, b[:])
	return err
}

// shrink closes all but n connections.
func (c *crowd) shrink(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.held[min(n, len(c.held)):] {
		conn.Close()
	}
	c.held = c.held[:min(n, len(c.held))]
}

// dead counts the held connections that do not echo any more.
func (c *crowd) dead() int {
	n := 0
	for _, conn := range c.held {
		_ = conn.SetDeadline(time.Now().Add(crowdPatience))
		if echo(conn) != nil {
			n++
		}
	}
	return n
}

// pulse is a connection that is asked all the time, to see whether it suffers from what happens beside it.
type pulse struct {
	conn  net.Conn
	stop  chan struct{}
	done  chan struct{}
	beats []beat
	err   error
}

// beat is an answer.
type beat struct {
	asked time.Time
	took  time.Duration
}

// pulseInterval is the time between two questions; when an answer takes longer, the next question follows it.
const pulseInterval = 5 * time.Millisecond

func startPulse(ctx context.Context, pod *topology.Pod, addr netip.AddrPort) (*pulse, error) {
	c, err := enter(ctx, pod, addr)
	if err != nil {
		return nil, err
	}
	p := &pulse{conn: c, stop: make(chan struct{}), done: make(chan struct{})}
	go p.run()
	return p, nil
}

func (p *pulse) run() {
	defer close(p.done)
	tick := time.NewTicker(pulseInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-p.stop:
			return
		}
		asked := time.Now()
		_ = p.conn.SetDeadline(asked.Add(20 * time.Second))
		if p.err = echo(p.conn); p.err != nil {
			return
		}
		p.beats = append(p.beats, beat{asked, time.Since(asked)})
	}
}

// end stops asking and returns the answers.
func (p *pulse) end() (beats []beat, err error) {
	close(p.stop)
	<-p.done
	p.conn.Close()
	if p.err != nil {
		return p.beats, fmt.Errorf("the connection beside, after %d answers: %w", len(p.beats), p.err)
	}
	return p.beats, nil
}

// lengths are how long answers took, in order of length.
func lengths(beats []beat) []time.Duration {
	all := make([]time.Duration, 0, len(beats))
	for _, b := range beats {
		all = append(all, b.took)
	}
	slices.Sort(all)
	return all
}

// pulses asks on n connections until during returns, and returns all the answers.
func pulses(ctx context.Context, pod *topology.Pod, addr netip.AddrPort, n int, during func() error) ([]beat, error) {
	var all []beat
	var failed []error
	var started []*pulse
	for range n {
		p, err := startPulse(ctx, pod, addr)
		if err != nil {
			failed = append(failed, err)
			break
		}
		started = append(started, p)
	}
	if len(failed) == 0 {
		failed = append(failed, during())
	}
	for _, p := range started {
		beats, err := p.end()
		all, failed = append(all, beats...), append(failed, err)
	}
	if len(all) == 0 {
		failed = append(failed, errors.New("there were no answers"))
	}
	return all, errors.Join(failed...)
}

// rest does nothing for d.
func rest(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// echoServer answers every byte in a pod until it is closed.
func echoServer(ctx context.Context, pod *topology.Pod, port uint16) (net.Listener, error) {
	l, err := pod.Listen(ctx, fmt.Sprintf("0.0.0.0:%d", port))
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				var b [1]byte
				for {
					if _, err := c.Read(b[:]); err != nil {
						return
					}
					if _, err := c.Write(b[:]); err != nil {
						return
					}
				}
			}()
		}
	}()
	return l, nil
}

// sink reads everything that connections send and throws it away.
func sink(args []string) error {
	addr, err := oneAddress(args)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", addr.String())
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			b := make([]byte, pourChunk)
			for {
				if _, err := c.Read(b); err != nil {
					return
				}
			}
		}()
	}
}

const (
	pourChunk   = 128 << 10
	pourStagger = 100 * time.Millisecond // between the beginnings of two streams
)

// pourSettled is how long after its start all streams of a pour run.
func pourSettled(streams int) time.Duration { return time.Duration(streams)*pourStagger + time.Second }

// pourResult is what pour prints: what each stream has sent while all of them ran.
type pourResult struct {
	Bytes   []int64 `json:"bytes"`
	Seconds float64 `json:"seconds"`
}

// pour sends as much as it can on several connections that begin one after the other, as real ones do: those that are
// first must not keep what they have got.
func pour(args []string, out io.Writer) error {
	f := flag.NewFlagSet("pour", flag.ContinueOnError)
	streams := f.Int("streams", 8, "connections")
	duration := f.Duration("duration", 4*time.Second, "how long after all of them run")
	if err := f.Parse(args); err != nil {
		return err
	}
	addr, err := oneAddress(f.Args())
	if err != nil {
		return err
	}
	sent := make([]atomic.Int64, *streams)
	failed := make(chan error, *streams)
	for i := range sent {
		c, err := net.DialTimeout("tcp", addr.String(), 10*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		go func() {
			b := make([]byte, pourChunk)
			for {
				n, err := c.Write(b)
				sent[i].Add(int64(n))
				if err != nil {
					failed <- err
					return
				}
			}
		}()
		time.Sleep(pourStagger)
	}
	time.Sleep(time.Second)
	r := pourResult{}
	for i := range sent {
		r.Bytes = append(r.Bytes, -sent[i].Load())
	}
	began := time.Now()
	timer := time.NewTimer(*duration)
	defer timer.Stop()
	select {
	case <-timer.C:
	case err := <-failed:
		return err
	}
	r.Seconds = time.Since(began).Seconds()
	for i := range sent {
		r.Bytes[i] += sent[i].Load()
	}
	return json.NewEncoder(out).Encode(r)
}
