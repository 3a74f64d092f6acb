package manager_test

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/identitytest"
	"github.com/culvert-mesh/culvert/identity/manager"
	"github.com/culvert-mesh/culvert/identity/svid"
)

// stuckWriter is a standard error whose reader has stopped: the pipe is full.
type stuckWriter struct {
	once  sync.Once
	stuck chan struct{} // closed by the first write
	free  chan struct{}
}

func (w *stuckWriter) Write(p []byte) (int, error) {
	w.once.Do(func() { close(w.stuck) })
	<-w.free
	return len(p), nil
}

type halfSource struct {
	t  *testing.T
	ca *identitytest.CA
}

func (s halfSource) Fetch(_ context.Context, id identity.ID) (*svid.SVID, error) {
	if id == idB {
		return nil, errRefused
	}
	return s.ca.SVID(s.t, id.String()), nil
}

// While nobody reads the log, one certificate that cannot be fetched must not keep the handshakes of all other identities,
// whose certificates are at hand, from beginning.
func TestStuckLogHoldsUpNobody(t *testing.T) {
	w := &stuckWriter{stuck: make(chan struct{}), free: make(chan struct{})}
	m := start(t, manager.Config{Source: halfSource{t, identitytest.NewCA(t, "td")}, Logger: slog.New(slog.NewTextHandler(w, nil))})
	t.Cleanup(func() { close(w.free) }) // before start's cleanup
	m.Acquire(idA)
	mustGet(t, m, idA)
	m.Acquire(idB)
	<-w.stuck // "certificate not fetched" is being written
	got := make(chan error, 1)
	go func() {
		_, err := m.Get(context.Background(), idA)
		got <- err
	}()
	select {
	case err := <-got:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(2 * time.Second):
		t.Error("Get of a certificate that is at hand waits for the log")
	}
}
