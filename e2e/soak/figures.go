package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/e2e/netlab"
)

// figures are what an agent holds.
type figures struct {
	descriptors int
	goroutines  int
	heap        int64 // bytes in use after a collection
	anonymous   int64 // bytes of memory that no file backs
	open        int   // connections
}

// figuresOf asks the agent and the kernel.
func figuresOf(a *netlab.Agent) (figures, error) {
	var f figures
	// The profile is taken after a collection; its text ends with the runtime's figures.
	profile, err := page(a, "15000", "/debug/pprof/heap?gc=1&debug=1")
	if err != nil {
		return f, err
	}
	if f.heap, err = number(profile, "# HeapAlloc = "); err != nil {
		return f, err
	}
	if profile, err = page(a, "15000", "/debug/pprof/goroutine?debug=1"); err != nil {
		return f, err
	}
	n, err := number(profile, "goroutine profile: total ")
	if err != nil {
		return f, err
	}
	f.goroutines = int(n)
	open, err := a.Metric("istio_tcp_sockets_open")
	if err != nil {
		return f, err
	}
	f.open = int(open)
	pid := a.Process().Pid()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return f, err
	}
	kib, err := number(strings.ReplaceAll(string(status), "\t", " "), "RssAnon: ")
	if err != nil {
		return f, err
	}
	f.anonymous = kib << 10
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	f.descriptors = len(entries)
	return f, err
}

func page(a *netlab.Agent, port, path string) (string, error) {
	status, body, err := a.Get(port, path)
	if err == nil && status != 200 {
		err = fmt.Errorf("get %s: status %d", path, status)
	}
	return body, err
}

// number returns the number behind the mark.
func number(text, mark string) (int64, error) {
	_, rest, ok := strings.Cut(text, mark)
	if !ok {
		return 0, fmt.Errorf("there is no %q", strings.TrimSpace(mark))
	}
	rest = strings.TrimLeft(rest, " ")
	end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(rest)
	}
	return strconv.ParseInt(rest[:end], 10, 64)
}

// restingFigures are the least that the agent holds within three seconds: asking makes it hold a little more.
func restingFigures(ctx context.Context, a *netlab.Agent) (figures, error) {
	least, err := figuresOf(a)
	for deadline := time.Now().Add(3 * time.Second); err == nil && time.Now().Before(deadline); {
		sleep(ctx, 150*time.Millisecond)
		if ctx.Err() != nil {
			return least, context.Cause(ctx)
		}
		var now figures
		now, err = figuresOf(a)
		least.descriptors, least.goroutines = min(least.descriptors, now.descriptors), min(least.goroutines, now.goroutines)
		least.heap, least.anonymous = max(least.heap, now.heap), max(least.anonymous, now.anonymous)
	}
	return least, err
}

// What may be more than at the start: the heap holds the metrics of every pair of pods that has talked, and memory that
// was used once is not all given back at once.
const (
	heapSlack      = 4 << 20
	anonymousSlack = 24 << 20
)

// returned says what has not come back to where it was.
func (f figures) returned(start figures) error {
	var errs []error
	check := func(what string, now, limit int64) {
		if now > limit {
			errs = append(errs, fmt.Errorf("%s %d, at most %d", what, now, limit))
		}
	}
	check("connections", int64(f.open), 0)
	check("descriptors", int64(f.descriptors), int64(start.descriptors))
	check("goroutines", int64(f.goroutines), int64(start.goroutines))
	check("heap", f.heap, start.heap+heapSlack)
	check("anonymous memory", f.anonymous, start.anonymous+anonymousSlack)
	return errors.Join(errs...)
}

// returnLimit is how long an agent may hold things for connections that have ended: sockets made ahead are kept for a
// minute.
const returnLimit = 100 * time.Second

// awaitReturn waits until the agent holds no more than at the start.
func awaitReturn(ctx context.Context, a *netlab.Agent, start figures) (figures, error) {
	ctx, cancel := context.WithTimeout(ctx, returnLimit)
	defer cancel()
	for {
		now, err := figuresOf(a)
		if err != nil {
			return now, err
		}
		if err = now.returned(start); err == nil || ctx.Err() != nil {
			return now, err
		}
		sleep(ctx, 500*time.Millisecond)
	}
}
