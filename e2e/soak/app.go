package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// appPort is where every application listens.
const appPort = 7000

// target is what a client may connect to.
type target struct {
	Name  string   `json:"name"` // of a pod or a service
	Addrs []string `json:"addrs"`
	Brief bool     `json:"brief"` // not for connections that last
}

// command is a line that the application reads.
type command struct {
	Targets []target `json:"targets,omitempty"`
	Finish  bool     `json:"finish,omitempty"` // open no further connections and let those end that are open
	Count   bool     `json:"count,omitempty"`  // say how many connections the server has
}

// event is a line that the application writes.
type event struct {
	Listening bool    `json:"listening,omitempty"`
	Idle      bool    `json:"idle,omitempty"` // the answer to finish
	Open      *int64  `json:"open,omitempty"` // the answer to count
	Report    *report `json:"report,omitempty"`
}

// report is what one end tells about a connection that is over.
type report struct {
	ID       uint64   `json:"id"` // 0 when the server has not got that far
	Client   bool     `json:"client"`
	Kind     kind     `json:"kind"`
	Self     instance `json:"self"`
	Peer     instance `json:"peer"`
	Target   string   `json:"target"` // client
	Addr     string   `json:"addr"`   // what the client connected to, or the client's address
	Start    int64    `json:"start"`  // nanoseconds since 1970
	End      int64    `json:"end"`
	Sent     int64    `json:"sent"`
	Received int64    `json:"received"`
	Error    string   `json:"error,omitempty"`
	Corrupt  bool     `json:"corrupt,omitempty"`
}

// workers is how many connections of a kind each application keeps going.
func workers(k kind) int { return [...]int{bulk: 1, requests: 2, short: 2, halfClose: 1, held: 6}[k] }

// think is how long a worker waits between two connections, at most.
func think(k kind) time.Duration {
	return [...]time.Duration{
		bulk: 1500 * time.Millisecond, requests: 500 * time.Millisecond, short: 100 * time.Millisecond,
		halfClose: 500 * time.Millisecond, held: time.Second,
	}[k]
}

// app is the application of one pod: a server, and clients of all the others.
type app struct {
	self    instance
	seed    uint64
	targets atomic.Pointer[[]target]
	finish  chan struct{}
	open    atomic.Int64
	last    atomic.Uint32 // connection number

	mu  sync.Mutex
	out *json.Encoder
}

// runApp serves until its input ends.
func runApp(args []string, in io.Reader, out io.Writer) error {
	f := flag.NewFlagSet("app", flag.ContinueOnError)
	pod := f.Int("pod", 0, "number of the pod")
	generation := f.Int("generation", 0, "number of the run")
	seed := f.Uint64("seed", 0, "seed")
	client := f.Bool("client", true, "make connections")
	listen := f.String("listen", fmt.Sprintf("[::]:%d", appPort), "address of the server")
	if err := f.Parse(args); err != nil {
		return err
	}
	a := &app{self: instance{*pod, *generation}, seed: *seed, finish: make(chan struct{}), out: json.NewEncoder(out)}
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	go a.serve(l)
	a.say(event{Listening: true})
	var clients sync.WaitGroup
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var c command
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			return fmt.Errorf("parse command: %w", err)
		}
		switch {
		case c.Targets != nil:
			if a.targets.Swap(&c.Targets) == nil && *client {
				a.work(&clients)
			}
		case c.Finish:
			close(a.finish)
			go func() {
				clients.Wait()
				a.say(event{Idle: true})
			}()
		case c.Count:
			n := a.open.Load()
			a.say(event{Open: &n})
		}
	}
	return lines.Err()
}

func (a *app) say(e event) {
	a.mu.Lock()
	defer a.mu.Unlock()
	_ = a.out.Encode(e) // without a reader the program is about to end
}

func (a *app) serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, "accept:", err)
			time.Sleep(10 * time.Millisecond)
			continue
		}
		a.open.Add(1)
		go func() {
			r := a.answer(c.(*net.TCPConn))
			c.Close()
			a.open.Add(-1)
			a.say(event{Report: r})
		}()
	}
}

// answer is the server's end of a connection.
func (a *app) answer(c *net.TCPConn) *report {
	r := &report{Self: a.self, Peer: nobody(), Addr: c.RemoteAddr().String(), Start: time.Now().UnixNano()}
	greeting := encodeGreeting(a.self)
	_ = c.SetDeadline(time.Now().Add(patience))
	n, err := c.Write(greeting)
	r.Sent = int64(n)
	if err != nil {
		return r.end(fmt.Errorf("send greeting: %w", err))
	}
	b := make([]byte, headerSize)
	n, err = io.ReadFull(c, b)
	r.Received = int64(n)
	if err != nil {
		return r.end(fmt.Errorf("read header: %w", err))
	}
	h, err := decodeHeader(b)
	if err != nil {
		return r.end(&corruption{err.Error()})
	}
	_ = c.SetDeadline(time.Time{})
	r.ID, r.Kind, r.Peer = h.id, h.kind, h.client
	x := newExchange(c, h, false)
	x.sent, x.received = r.Sent, r.Received
	err = x.run(script(h.kind, h.seed))
	r.Sent, r.Received = x.sent, x.received
	return r.end(err)
}

func (r *report) end(err error) *report {
	r.End = time.Now().UnixNano()
	if err != nil {
		r.Error, r.Corrupt = err.Error(), isCorruption(err)
	}
	return r
}

// work starts the clients.
func (a *app) work(wg *sync.WaitGroup) {
	for k := range kinds {
		for i := range workers(k) {
			rng := rand.New(rand.NewPCG(a.seed, uint64(k)<<32|uint64(i)))
			wg.Go(func() { a.keepGoing(k, rng) })
		}
	}
}

// keepGoing makes one connection after the other.
func (a *app) keepGoing(k kind, rng *rand.Rand) {
	for {
		t := time.NewTimer(time.Millisecond + time.Duration(rng.Int64N(int64(think(k)))))
		select {
		case <-a.finish:
			t.Stop()
			return
		case <-t.C:
		}
		a.say(event{Report: a.connect(k, rng)})
	}
}

// connect is the client's end of a connection to one of the targets.
func (a *app) connect(k kind, rng *rand.Rand) *report {
	targets := *a.targets.Load()
	t := targets[rng.IntN(len(targets))]
	for t.Brief && k == held {
		t = targets[rng.IntN(len(targets))]
	}
	h := header{
		id:     uint64(a.self.Pod+1)<<48 | uint64(a.self.Generation)<<32 | uint64(a.last.Add(1)),
		client: a.self, kind: k, seed: rng.Uint64(),
	}
	r := &report{
		ID: h.id, Client: true, Kind: k, Self: a.self, Peer: nobody(), Target: t.Name, Addr: t.Addrs[rng.IntN(len(t.Addrs))],
		Start: time.Now().UnixNano(),
	}
	c, err := net.DialTimeout("tcp", r.Addr, patience)
	if err != nil {
		return r.end(err)
	}
	defer c.Close()
	tc, ok := c.(*net.TCPConn)
	if !ok {
		return r.end(errors.New("not a TCP connection"))
	}
	x := newExchange(tc, h, true)
	x.hurry = a.finish
	err = x.write(h.encode())
	if err == nil {
		err = x.run(script(k, h.seed))
	}
	if err != nil && x.silent {
		x.hear()
	}
	r.Sent, r.Received, r.Peer = x.sent, x.received, x.peer
	return r.end(err)
}

// hear tries to learn who the server was after a connection has failed: the greeting may be there, unread.
func (x *exchange) hear() {
	received := x.received
	_ = x.greeted() // mostly there is nothing to hear any more
	x.received = received
}
