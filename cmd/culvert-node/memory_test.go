package main

import "testing"

func TestHeapPercent(t *testing.T) {
	for _, c := range []struct {
		live uint64
		want int
	}{
		{0, 300}, {3 << 20, 300}, {4 << 20, 200}, {4<<20 + 1, 150}, {5 << 20, 100}, {100 << 20, 100},
	} {
		got := heapPercent(c.live)
		if got != c.want {
			t.Errorf("with %d bytes alive: %d %%, want %d %%", c.live, got, c.want)
		}
		if end := c.live + c.live*uint64(got)/100; got > usualPercent && end > leastHeap {
			t.Errorf("with %d bytes alive the heap may grow to %d, beyond %d", c.live, end, leastHeap)
		}
	}
}
