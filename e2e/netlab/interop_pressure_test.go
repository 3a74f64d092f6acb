package netlab_test

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"
)

// testAbandoned: transfers that are given up in the middle, one after the other through the same tunnels, far more bytes
// in all than a connection's window has. Credit that got lost with one of them would stop everything behind it.
func (it *interop) testAbandoned(w *way) {
	const piece = 1 << 20
	for i := range 40 {
		s := it.open(w, floodPort)
		word, move := "flood", func() error { _, err := io.CopyN(io.Discard, s.TCPConn, piece); return err }
		if i%2 == 1 {
			word, move = "drain", func() error { _, err := io.Copy(s.TCPConn, random(piece)); return err }
		}
		if _, err := io.WriteString(s, word); err != nil {
			it.t.Fatal(err)
		}
		if err := move(); err != nil {
			it.t.Fatalf("transfer %d (%s): %v", i, word, err)
		}
		_ = s.SetLinger(0)
		_ = s.Close()
	}
	it.testBulk(w)
}

// testStalled: connections whose reader has stopped hold nobody back. Where Culvert receives there may be many of them;
// the peer lends stalled streams the window of its whole connection, four times that of a stream.
func (it *interop) testStalled(w *way) {
	const (
		culvertTakes = 20
		peerTakes    = 2
	)
	up, down := peerTakes, culvertTakes
	if !w.peerServes {
		up, down = down, up
	}
	var stalled []*session
	for i := range up + down {
		s := it.open(w, floodPort)
		word := "still"
		if i >= up {
			word = "flood"
		}
		if _, err := io.WriteString(s, word); err != nil {
			it.t.Fatal(err)
		}
		stalled = append(stalled, s)
	}
	var wg sync.WaitGroup
	for _, s := range stalled[:up] {
		wg.Go(func() {
			_ = s.SetWriteDeadline(time.Now().Add(2 * time.Second))
			if _, err := io.Copy(s.TCPConn, random(1<<30)); !errors.Is(err, os.ErrDeadlineExceeded) {
				it.t.Errorf("writing to a server that does not read ended with %v", err)
			}
		})
	}
	wg.Wait()
	it.testMany(w)
	it.testBulk(w)
	for _, s := range stalled {
		_ = s.SetLinger(0)
		_ = s.Close()
	}
	it.testLines(w)
}
