package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestPattern(t *testing.T) {
	p := pattern{seed: 42}
	whole := make([]byte, 1000)
	p.fill(whole, 0)
	for _, cut := range []int{1, 7, 8, 9, 64, 993, 999} {
		part := make([]byte, len(whole)-cut)
		p.fill(part, uint64(cut))
		if !bytes.Equal(part, whole[cut:]) {
			t.Errorf("the stream from %d on is another one", cut)
		}
		if i := p.check(whole[cut:], uint64(cut)); i != -1 {
			t.Errorf("from %d on, byte %d is said to be wrong", cut, i)
		}
	}
	for _, i := range []int{0, 1, 8, 15, 500, 999} {
		broken := bytes.Clone(whole)
		broken[i] ^= 0x10
		if got := p.check(broken, 0); got != i {
			t.Errorf("byte %d is wrong, %d is said to be", i, got)
		}
	}
	if got := p.check(whole[8:], 0); got < 0 {
		t.Error("a lost word is not seen")
	}
}

func TestHeader(t *testing.T) {
	want := header{id: 1 << 60, client: instance{13, 4}, kind: held, seed: 99}
	if got, err := decodeHeader(want.encode()); err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
	broken := want.encode()
	broken[0]++
	if _, err := decodeHeader(broken); err == nil {
		t.Error("a header without its mark was taken")
	}
	if got, err := decodeGreeting(encodeGreeting(want.client)); err != nil || got != want.client {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := decodeGreeting(make([]byte, greetingSize)); err == nil {
		t.Error("a greeting without its mark was taken")
	}
}

// pipe is both ends of a TCP connection.
func pipe(t *testing.T) (client, server *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		s.Close()
	})
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

func TestExchange(t *testing.T) {
	for k := range kinds {
		for seed := range uint64(6) {
			t.Run(fmt.Sprintf("%s_%d", k, seed), func(t *testing.T) {
				t.Parallel()
				c, s := pipe(t)
				h := header{client: instance{1, 0}, kind: k, seed: seed}
				client, server := newExchange(c, h, true), newExchange(s, h, false)
				hurry := make(chan struct{})
				close(hurry)
				client.hurry = hurry
				done := make(chan error, 1)
				go func() {
					err := server.write(encodeGreeting(instance{2, 3}))
					if err == nil {
						err = server.run(script(k, seed))
					}
					s.Close()
					done <- err
				}()
				if err := errors.Join(client.run(script(k, seed)), <-done); err != nil {
					t.Fatal(err)
				}
				if client.sent != server.received || client.received != server.sent {
					t.Errorf("client sent %d and received %d, server received %d and sent %d", client.sent, client.received, server.received, server.sent)
				}
				if client.peer != (instance{2, 3}) {
					t.Errorf("the client was greeted by %v", client.peer)
				}
			})
		}
	}
}

// TestExchangeSeesDamage puts something between both ends that does what must not happen.
func TestExchangeSeesDamage(t *testing.T) {
	tests := []struct {
		name    string
		damage  func(from io.Reader, to *net.TCPConn)
		corrupt bool
	}{
		{"changed", func(from io.Reader, to *net.TCPConn) {
			b := make([]byte, greetingSize+100)
			io.ReadFull(from, b)
			b[len(b)-1]++
			to.Write(b)
			io.Copy(to, from)
			to.CloseWrite()
		}, true},
		{"lost_middle", func(from io.Reader, to *net.TCPConn) {
			io.CopyN(to, from, greetingSize+100)
			io.CopyN(io.Discard, from, 8)
			io.Copy(to, from)
			to.CloseWrite()
		}, true},
		{"lost_end", func(from io.Reader, to *net.TCPConn) {
			io.CopyN(to, from, greetingSize+100)
			to.CloseWrite()
		}, false},
		{"more", func(from io.Reader, to *net.TCPConn) {
			io.Copy(to, from)
			to.Write([]byte{1})
			to.CloseWrite()
		}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, near := pipe(t)
			far, s := pipe(t)
			go func() {
				io.Copy(far, near)
				far.CloseWrite()
			}()
			go tt.damage(far, near)
			h := header{kind: halfClose, seed: 3}
			go func() {
				x := newExchange(s, h, false)
				x.write(encodeGreeting(instance{}))
				x.run(script(h.kind, h.seed))
				s.Close()
			}()
			err := newExchange(c, h, true).run(script(h.kind, h.seed))
			if err == nil || isCorruption(err) != tt.corrupt {
				t.Errorf("got %v", err)
			}
		})
	}
}

// book is a ledger of two pods, of which pod 1 is behind the service "both" with pod 0.
func book() *ledger {
	l := newLedger(2)
	l.pods[netip.MustParseAddr("10.0.0.1")], l.pods[netip.MustParseAddr("10.0.0.2")] = 0, 1
	l.members["one"], l.members["both"] = []int{1}, []int{0, 1}
	l.listening(0)
	l.listening(1)
	return l
}

func TestLedger(t *testing.T) {
	client, server := instance{0, 0}, instance{1, 0}
	now := func() int64 { return time.Now().UnixNano() }
	good := func(c bool) *report {
		r := &report{ID: 7, Client: c, Self: client, Peer: server, Target: "one", Addr: "10.0.0.2:1", Start: now(), End: now(), Sent: 10, Received: 20}
		if !c {
			r.Self, r.Peer, r.Sent, r.Received = server, client, 20, 10
		}
		return r
	}
	bad := func(target string, peer instance) *report {
		return &report{ID: 7, Client: true, Self: client, Peer: peer, Target: target, Start: now(), End: now(), Error: "reset"}
	}
	tests := []struct {
		name   string
		do     func(l *ledger)
		failed int
		want   totals
	}{
		{"both_say_the_same", func(l *ledger) { l.add(good(true)); l.add(good(false)) }, 0, totals{connections: [kinds]int{bulk: 1}, bytes: 30}},
		{"a_byte_is_missing", func(l *ledger) {
			r := good(false)
			r.Received--
			l.add(good(true))
			l.add(r)
		}, 1, totals{}},
		{"one_side_is_silent", func(l *ledger) { l.add(good(true)) }, 1, totals{}},
		{"one_side_is_dead", func(l *ledger) { l.add(good(true)); l.kill(server) }, 0, totals{unmatched: 1}},
		{"corrupted_although_dead", func(l *ledger) {
			l.kill(server)
			r := bad("one", server)
			r.Corrupt = true
			l.add(r)
		}, 1, totals{}},
		{"cut_short", func(l *ledger) { l.add(bad("one", server)) }, 1, totals{}},
		{"cut_short_by_death", func(l *ledger) { l.kill(server); l.add(bad("one", server)) }, 0, totals{excused: 1}},
		{"death_of_an_older_run", func(l *ledger) {
			l.kill(server)
			l.gone(1)
			l.listening(1)
			l.add(bad("one", instance{1, 1}))
		}, 1, totals{}},
		{"failed_before_death", func(l *ledger) {
			r := bad("one", server)
			time.Sleep(time.Millisecond)
			l.kill(server)
			l.add(r)
		}, 1, totals{}},
		{"nobody_there", func(l *ledger) { l.kill(server); l.gone(1); l.add(bad("one", nobody())) }, 0, totals{refused: 1}},
		{"nobody_there_any_more", func(l *ledger) {
			l.kill(server)
			l.gone(1)
			l.listening(1)
			time.Sleep(time.Millisecond)
			l.add(bad("one", nobody()))
		}, 1, totals{}},
		{"another_endpoint_was_there", func(l *ledger) {
			l.kill(server)
			l.gone(1)
			time.Sleep(time.Millisecond)
			l.add(bad("both", nobody()))
		}, 1, totals{}},
		{"endpoint_died_meanwhile", func(l *ledger) {
			r := bad("both", nobody())
			l.kill(server)
			r.End = now()
			l.add(r)
		}, 0, totals{refused: 1}},
		{"the_other_endpoint_had_left", func(l *ledger) {
			l.leave("both", 0)
			l.kill(server)
			l.gone(1)
			time.Sleep(time.Millisecond)
			l.add(bad("both", nobody()))
		}, 0, totals{refused: 1}},
		{"went_where_it_should_not", func(l *ledger) {
			l.leave("one", 1)
			c, s := good(true), good(false)
			c.Start += int64(time.Hour)
			l.add(c)
			l.add(s)
		}, 1, totals{connections: [kinds]int{bulk: 1}, bytes: 30}},
		{"attempt_given_up", func(l *ledger) {
			l.add(&report{Self: server, Peer: nobody(), Addr: "10.0.0.1:5", Error: "EOF"})
		}, 0, totals{orphans: 1}},
		{"header_cut", func(l *ledger) {
			l.add(&report{Self: server, Peer: nobody(), Addr: "10.0.0.1:5", Received: 5, Error: "EOF"})
		}, 1, totals{}},
		{"visitor", func(l *ledger) {
			l.add(&report{Self: server, Peer: nobody(), Addr: "10.0.0.9:5", Error: "EOF"})
		}, 0, totals{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := book()
			tt.do(l)
			l.settle()
			got, failed, failures := l.sums()
			if failed != tt.failed || got != tt.want {
				t.Errorf("%d failures, want %d; totals %+v, want %+v: %s", failed, tt.failed, got, tt.want, strings.Join(failures, "\n"))
			}
		})
	}
}

// TestApp runs two applications against each other over loopback and checks their books.
func TestApp(t *testing.T) {
	var addrs [2]string
	for i := range addrs {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addrs[i] = l.Addr().String()
		l.Close()
	}
	l := newLedger(2)
	l.pods[netip.MustParseAddr("127.0.0.1")] = 0
	targets := []target{{Name: "a", Addrs: addrs[:1]}, {Name: "b", Addrs: addrs[1:]}}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var procs [2]*process
	var ins [2]*io.PipeWriter
	f := &fleet{ledger: l}
	ended := make(chan error, 2)
	for i := range procs {
		inR, inW := io.Pipe()
		outR, outW := io.Pipe()
		ins[i] = inW
		procs[i] = &process{instance: instance{i, 0}, in: inW, listening: make(chan struct{}), idle: make(chan struct{}), open: make(chan int64, 1)}
		go func() {
			err := runApp([]string{fmt.Sprintf("-pod=%d", i), "-seed=5", "-listen=" + addrs[i]}, inR, outW)
			outW.Close()
			ended <- err
		}()
		go f.listen(procs[i], bufio.NewReader(outR))
	}
	for _, p := range procs {
		<-p.listening
	}
	for _, p := range procs {
		if err := p.ask(command{Targets: targets}); err != nil {
			t.Fatal(err)
		}
	}
	several := func() bool {
		sums, _, _ := l.sums()
		return sums.connections[short] > 20 && sums.connections[requests] > 1 && sums.connections[bulk] > 1
	}
	if err := until(ctx, several); err != nil {
		t.Error(err)
	}
	for _, p := range procs {
		if err := p.ask(command{Finish: true}); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range procs {
		select {
		case <-p.idle:
		case <-ctx.Done():
			t.Fatal("connections do not end")
		}
	}
	if err := until(ctx, func() bool { return l.pending() == 0 }); err != nil {
		t.Error(err)
	}
	for i := range ins {
		ins[i].Close()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	l.settle()
	if sums, failed, failures := l.sums(); failed != 0 || sums.connections[held] == 0 {
		t.Errorf("%+v\n%s", sums, strings.Join(failures, "\n"))
	}
}

func TestReturned(t *testing.T) {
	start := figures{descriptors: 50, goroutines: 60, heap: 3 << 20, anonymous: 9 << 20}
	if err := start.returned(start); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*figures){
		"descriptors": func(f *figures) { f.descriptors++ },
		"goroutines":  func(f *figures) { f.goroutines++ },
		"heap":        func(f *figures) { f.heap += heapSlack + 1 },
		"anonymous":   func(f *figures) { f.anonymous += anonymousSlack + 1 },
		"connections": func(f *figures) { f.open++ },
	} {
		now := start
		change(&now)
		if err := now.returned(start); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n, err := number("x\n# HeapAlloc = 123\n", "# HeapAlloc = "); err != nil || n != 123 {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := number("x", "y"); err == nil {
		t.Error("a number that is not there was found")
	}
}

func TestParse(t *testing.T) {
	for args, want := range map[string]string{"": "", "--time=2m --seed=9": "", "--time=5s": "--time", "now": `"now"`} {
		o, err := parse(strings.Fields(args))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", args, err)
		}
		if err == nil && o.seed == 0 {
			t.Errorf("%q: no seed was chosen", args)
		}
	}
}

// TestVerdict wants every kind of disturbance to have happened.
func TestVerdict(t *testing.T) {
	s := &soak{options: &options{}, out: io.Discard, ledger: book(), chaos: &chaos{}}
	err := s.verdict(nil)
	for _, want := range []string{"no kills", "no flaps of pods", "no flaps of nodes", "no rotations", "no policy changes", "no endpoint changes", "no bytes"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
}

// TestScriptsAreShared wants both ends to get the same script from the same header, and all kinds to be reachable.
func TestScriptsAreShared(t *testing.T) {
	for k := range kinds {
		for range 100 {
			seed := rand.Uint64()
			a, b := script(k, seed), script(k, seed)
			if fmt.Sprint(a) != fmt.Sprint(b) || len(a) == 0 {
				t.Fatalf("%s %d: %v and %v", k, seed, a, b)
			}
		}
	}
	if text, err := json.Marshal(event{Report: &report{Kind: held}}); err != nil || !strings.Contains(string(text), `"kind":4`) {
		t.Errorf("%s, %v", text, err)
	}
}
