package podset_test

import (
	"context"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/culvert-mesh/culvert/redirect"
	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/nft"
	"github.com/culvert-mesh/culvert/redirect/podset"
)

// TestLeavesBesideAnotherAgent: during an upgrade a pod leaves the new agent, which has no connections of it, while the one of
// before serves some still. They go on in the time that they were given.
func TestLeavesBesideAnotherAgent(t *testing.T) {
	n := newNode(t, podset.Config{DrainTimeout: 10 * time.Second})
	if err := n.handOver(); err != nil {
		t.Fatal(err)
	}
	who, before := n.calls()
	if who != "15001" {
		t.Fatalf("enrolled: served by %q", who)
	}
	endFirst, looked := n.end, make(chan struct{})
	look := sync.OnceFunc(func() { close(looked) })
	n.run(podset.Config{
		DrainTimeout: 10 * time.Second, SocketAudit: -1,
		MarkedSockets: func(ns *netns.NS) ([]redirect.Socket, error) { defer look(); return redirect.MarkedSockets(ns) },
		OwnSockets:    func() (map[uint64]bool, error) { return nil, nil }, // those of the other agent are in this process, too
	})
	if err := n.handOver(); err != nil {
		t.Fatal(err)
	}
	var drained sync.WaitGroup
	drained.Go(endFirst)
	left := make(chan error, 1)
	go func() { left <- n.takeBack() }()
	select {
	case <-looked:
	case err := <-left:
		left <- err
	}
	if err := echoes(before); err != nil {
		t.Errorf("connection that the other agent serves: %v", err)
	}
	_ = before.Close()
	drained.Wait()
	if err := <-left; err != nil {
		t.Error(err)
	}
	if have, err := nft.Read(n.pod); err != nil || have != nil {
		t.Errorf("left behind: %s, %v", have.Text(), err)
	}
}

// TestEndsBesideAnotherAgent: an agent that ends does not wait for the connections of another one.
func TestEndsBesideAnotherAgent(t *testing.T) {
	ns := namespaces(t, 1)
	bubble(t, func(t *testing.T) {
		w := newWorld(t)
		end := w.start(podset.Config{
			AuditInterval: time.Hour, DrainTimeout: time.Minute, OwnSockets: func() (map[uint64]bool, error) { return nil, nil },
			MarkedSockets: func(*netns.NS) ([]redirect.Socket, error) {
				return []redirect.Socket{{Inode: 1, Remote: netip.MustParseAddrPort("10.0.0.1:9000")}}, nil
			},
		})
		if err := w.set.Add(t.Context(), w.pod("a", ns[0])); err != nil {
			t.Fatal(err)
		}
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		_ = w.set.RemoveWithin(gone, "uid-a", time.Hour)
		synctest.Wait()
		if got := w.states(); got != "a:leaving " {
			t.Errorf("states %q, want that it waits for the other agent", got)
		}
		before := time.Now()
		end()
		if took := time.Since(before); took > time.Second {
			t.Errorf("the end took %v", took)
		}
	})
}
