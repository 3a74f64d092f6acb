package main

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// leastHeap is what the heap may grow to before it is collected. By itself Go collects a small heap at 4 MiB, which an
	// agent fills several times a second when connections come and go; each collection stops all loops and scans all
	// stacks for little.
	leastHeap = 12 << 20
	// heapLook is how often the size of what lives is looked at.
	heapLook = time.Second
	// usualPercent is Go's own: the heap may double.
	usualPercent = 100
)

// keepHeap lets a small heap grow further before it is collected, and a large one as ever, until ctx ends.
func keepHeap(ctx context.Context) error {
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	set := usualPercent
	tick := time.NewTicker(heapLook)
	defer tick.Stop()
	for {
		metrics.Read(live)
		if want := heapPercent(live[0].Value.Uint64()); want != set {
			set = want
			debug.SetGCPercent(set)
		}
		select {
		case <-ctx.Done():
			debug.SetGCPercent(usualPercent)
			return nil
		case <-tick.C:
		}
	}
}

// heapPercent is how much may be added to live bytes before they are collected. Go's own least heap is 4 MiB times it.
func heapPercent(live uint64) int {
	for _, percent := range []int{leastHeap / (4 << 20) * 100, 200, 150} {
		if live+live*uint64(percent)/100 <= leastHeap {
			return percent
		}
	}
	return usualPercent
}
