package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// response is one HTTP exchange.
type response struct {
	Status int             `json:"status"`
	Error  string          `json:"error,omitempty"`
	Body   json.RawMessage `json:"body,omitempty"` // when it is JSON
	Text   string          `json:"text,omitempty"` // when it is not
	Millis int64           `json:"millis"`
}

func get(args []string) (any, error) {
	flags := flag.NewFlagSet("get", flag.ExitOnError)
	count := flags.Int("count", 1, "number of requests")
	timeout := flags.Duration("timeout", 5*time.Second, "for each")
	_ = flags.Parse(args) // it exits
	if flags.NArg() != 1 {
		return nil, errors.New("get: one URL is needed")
	}
	client := freshClient(*timeout)
	all := make([]response, 0, *count)
	for range *count {
		all = append(all, exchange(client, flags.Arg(0)))
	}
	return all, nil
}

// freshClient makes a new connection for each request.
func freshClient(timeout time.Duration) *http.Client {
	return &http.Client{Timeout: timeout, Transport: &http.Transport{DisableKeepAlives: true}}
}

func exchange(client *http.Client, url string) response {
	begin := time.Now()
	var r response
	resp, err := client.Get(url)
	if err == nil {
		var body []byte
		body, err = io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		_ = resp.Body.Close()
		r.Status = resp.StatusCode
		if json.Valid(body) {
			r.Body = body
		} else {
			r.Text = string(body)
		}
	}
	if err != nil {
		r.Error = err.Error()
	}
	r.Millis = time.Since(begin).Milliseconds()
	return r
}

func talk(args []string) (any, error) {
	flags := flag.NewFlagSet("talk", flag.ExitOnError)
	size := flags.Int("bytes", 1024, "to send and to get back")
	payload := flags.String("payload", "", "what to send instead of random bytes")
	from := flags.String("from", "", "local address")
	timeout := flags.Duration("timeout", 5*time.Second, "for all of it")
	_ = flags.Parse(args) // it exits
	var result struct {
		Bytes int    `json:"bytes"`
		Local string `json:"local"`
		Error string `json:"error,omitempty"`
	}
	data := []byte(*payload)
	if len(data) == 0 {
		data = pattern(rand.Uint64(), *size)
	}
	dialer := net.Dialer{Timeout: *timeout}
	if *from != "" {
		addr, err := net.ResolveTCPAddr("tcp", *from)
		if err != nil {
			return nil, err
		}
		dialer.LocalAddr = addr
	}
	conn, err := dialer.Dial("tcp", flags.Arg(0))
	if err != nil {
		result.Error = err.Error()
		return result, nil
	}
	defer func() { _ = conn.Close() }()
	result.Local = conn.LocalAddr().String()
	_ = conn.SetDeadline(time.Now().Add(*timeout))
	if result.Bytes, err = roundTrip(conn, data); err != nil {
		result.Error = err.Error()
	}
	return result, nil
}

// roundTrip sends data, expects it back and returns how much came.
func roundTrip(conn net.Conn, data []byte) (int, error) {
	sent := make(chan error, 1)
	go func() {
		_, err := conn.Write(data)
		sent <- err
	}()
	back := make([]byte, len(data))
	n, err := io.ReadFull(conn, back)
	if err == nil && !bytes.Equal(back, data) {
		err = errors.New("other bytes came back")
	}
	return n, errors.Join(err, <-sent)
}

func pattern(seed uint64, size int) []byte {
	source := rand.New(rand.NewPCG(seed, 1))
	return slices.Collect(func(yield func(byte) bool) {
		for range size {
			if !yield(byte(source.Uint32())) {
				return
			}
		}
	})
}

// held is the account of connections that talk for long.
type held struct {
	Conns  int      `json:"conns"`
	Rounds int64    `json:"rounds"`
	Bytes  int64    `json:"bytes"`
	Errors []string `json:"errors,omitempty"`
}

func hold(args []string) (any, error) {
	flags := flag.NewFlagSet("hold", flag.ExitOnError)
	conns := flags.Int("conns", 1, "number of connections")
	pause := flags.Duration("pause", 20*time.Millisecond, "between rounds")
	_ = flags.Parse(args) // it exits
	ctx := untilInputEnds()
	var rounds, octets atomic.Int64
	var mu sync.Mutex
	var failed []string
	var wg, open sync.WaitGroup
	for i := range *conns {
		open.Add(1)
		wg.Go(func() {
			if err := holdOne(ctx, flags.Arg(0), *pause, open.Done, &rounds, &octets); err != nil {
				mu.Lock()
				failed = append(failed, fmt.Sprintf("connection %d: %v", i, err))
				mu.Unlock()
			}
		})
	}
	open.Wait()
	fmt.Println("open") // the caller waits for it
	wg.Wait()
	return held{Conns: *conns, Rounds: rounds.Load(), Bytes: octets.Load(), Errors: failed}, nil
}

// holdOne talks on one connection until the context ends, then half-closes and expects the end.
func holdOne(ctx context.Context, addr string, pause time.Duration, opened func(), rounds, octets *atomic.Int64) error {
	conn, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		opened()
		return err
	}
	defer func() { _ = conn.Close() }()
	for first := true; ; first = false {
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		n, err := roundTrip(conn, pattern(rand.Uint64(), 700+rand.IntN(2000)))
		if first {
			opened()
		}
		if err != nil {
			return fmt.Errorf("after %d rounds: %w", rounds.Load(), err)
		}
		rounds.Add(1)
		octets.Add(int64(n))
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
			continue
		case <-ctx.Done():
			timer.Stop()
		}
		break
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return errors.New("not a TCP connection")
	}
	if err := tcp.CloseWrite(); err != nil {
		return err
	}
	switch n, err := conn.Read(make([]byte, 1)); {
	case n != 0:
		return fmt.Errorf("%d bytes after the end", n)
	case err != io.EOF:
		return fmt.Errorf("wait for the end: %w", err)
	}
	return nil
}

// loaded is the account of many short requests.
type loaded struct {
	Requests int64          `json:"requests"`
	Failed   int64          `json:"failed"`
	Statuses map[string]int `json:"statuses"`
	Errors   []string       `json:"errors,omitempty"` // the first few
	Pods     map[string]int `json:"pods"`             // who answered
}

func load(args []string) (any, error) {
	flags := flag.NewFlagSet("load", flag.ExitOnError)
	pause := flags.Duration("pause", 10*time.Millisecond, "between requests")
	timeout := flags.Duration("timeout", 10*time.Second, "for each request")
	_ = flags.Parse(args) // it exits
	ctx := untilInputEnds()
	client := freshClient(*timeout)
	sum := loaded{Statuses: make(map[string]int), Pods: make(map[string]int)}
	fmt.Println("open")
	for ctx.Err() == nil {
		r := exchange(client, flags.Arg(0))
		sum.Requests++
		sum.Statuses[fmt.Sprint(r.Status)]++
		var w who
		if json.Unmarshal(r.Body, &w) == nil {
			sum.Pods[w.Pod]++
		}
		if r.Status != http.StatusOK {
			sum.Failed++
			if len(sum.Errors) < 5 {
				sum.Errors = append(sum.Errors, fmt.Sprintf("%s request %d: status %d %s", time.Now().Format("15:04:05.000"), sum.Requests, r.Status, r.Error))
			}
		}
		time.Sleep(*pause)
	}
	return sum, nil
}

func untilInputEnds() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	return ctx
}

func resolve(args []string) (any, error) {
	if len(args) != 1 {
		return nil, errors.New("resolve: one name is needed")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupHost(ctx, args[0])
	result := map[string]any{"addresses": addrs}
	if err != nil {
		result["error"] = err.Error()
	}
	return result, nil
}
