package kubeca

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestTurns: who waits for many has a turn no more often than who waits for one.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns(1, 1, 3)
		var mu sync.Mutex
		var got []string
		var all sync.WaitGroup
		for _, address := range []string{"a", "a", "a", "a", "b", "c"} {
			all.Go(func() {
				if err := turns.take(t.Context(), address); err != nil {
					t.Error(err)
				}
				mu.Lock()
				got = append(got, address)
				mu.Unlock()
				time.Sleep(time.Second)
				turns.leave(address)
			})
			synctest.Wait() // they come in this order
		}
		all.Wait()
		if !slices.Equal(got, []string{"a", "a", "b", "c", "a", "a"}) {
			t.Errorf("turns went to %v", got)
		}
		if len(turns.of) != 0 || len(turns.order) != 0 || turns.taken != 0 {
			t.Errorf("left are %v, %v, %d", turns.of, turns.order, turns.taken)
		}
	})
}

// TestTurnsAbandoned has many come and go; no turn is lost, and there are never too many.
func TestTurnsAbandoned(t *testing.T) {
	turns := newTurns(3, 2, 4)
	var mu sync.Mutex
	inside := map[string]int{}
	enter := func(address string, n int) {
		mu.Lock()
		defer mu.Unlock()
		inside[address] += n
		inside[""] += n
		if inside[address] > 2 || inside[""] > 3 {
			t.Errorf("inside are %v", inside)
		}
	}
	var all sync.WaitGroup
	for n := range 30 {
		address := fmt.Sprint("address ", n%5)
		all.Go(func() {
			for i := range 200 {
				ctx, cancel := context.WithCancel(t.Context())
				if i%2 == n%2 {
					go cancel()
				}
				if turns.take(ctx, address) == nil {
					enter(address, 1)
					enter(address, -1)
					turns.leave(address)
				}
				cancel()
			}
		})
	}
	all.Wait()
	if len(turns.of) != 0 || len(turns.order) != 0 || turns.taken != 0 {
		t.Errorf("left are %v, %v, %d", turns.of, turns.order, turns.taken)
	}
}
