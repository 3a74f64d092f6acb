package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/culvert-mesh/culvert/cmd/internal/run"
)

// leaseName is the Lease by which replicas agree on who writes.
const leaseName = "culvert-controller"

// election runs tasks in the one replica that leads. Two may lead for a moment (a clock that stood still, an API server
// that was away); the tasks bear that, because each writes what it finds, to the version that it has read.
type election struct {
	client    kubernetes.Interface
	namespace string
	identity  string        // of this replica
	lease     time.Duration // after which a silent leader is replaced
	tasks     []run.Component
	log       *slog.Logger

	leading atomic.Bool
}

// Run takes part in elections until ctx ends. A leader that ends gives the lease back.
func (e *election) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := e.term(ctx); err != nil {
			return err
		}
	}
	return nil
}

// term lasts until the lease was had and lost, or ctx ends.
func (e *election) term(ctx context.Context) error {
	elected := make(chan context.Context, 1)
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: e.namespace, Name: leaseName},
			Client:     e.client.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: e.identity},
		},
		Name:          leaseName,
		LeaseDuration: e.lease, RenewDeadline: e.lease * 2 / 3, RetryPeriod: e.lease * 2 / 15,
		ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(ctx context.Context) { elected <- ctx },
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return fmt.Errorf("elect a leader: %w", err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // gives the lease back when a task has failed
	over := make(chan struct{})
	wg.Go(func() {
		defer close(over)
		elector.Run(ctx)
	})
	select {
	case leading := <-elected:
		return e.lead(leading)
	case <-over:
		return nil
	}
}

// lead runs the tasks until ctx ends. One that fails ends the program: a leader that does not write is worse than none.
func (e *election) lead(ctx context.Context) error {
	e.leading.Store(true)
	defer e.leading.Store(false)
	e.log.Info("this replica leads", "identity", e.identity)
	defer e.log.Info("this replica does not lead any more", "identity", e.identity)
	failed := make([]error, len(e.tasks))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	for i, t := range e.tasks {
		wg.Go(func() {
			if err := t.Run(ctx); err != nil && ctx.Err() == nil {
				failed[i] = fmt.Errorf("%s: %w", t.Name, err)
				cancel()
			}
		})
	}
	wg.Wait()
	return errors.Join(failed...)
}
