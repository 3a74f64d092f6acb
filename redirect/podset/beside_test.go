package podset_test

import (
	"sync"
	"testing"
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
