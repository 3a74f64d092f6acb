package main

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes/fake"

	"github.com/culvert-mesh/culvert/cmd/internal/run"
)

// TestLeaderWhoseTaskFails: it gives the lease back and ends, instead of leading without writing.
func TestLeaderWhoseTaskFails(t *testing.T) {
	failed, ended := errors.New("no permission to watch nodes"), false
	e := &election{
		client: fake.NewClientset(), namespace: "culvert-system", identity: "one", lease: 15 * time.Second, log: slog.New(slog.DiscardHandler),
		tasks: []run.Component{
			{Name: "taints", Run: func(context.Context) error { return failed }},
			{Name: "status", Run: func(ctx context.Context) error { <-ctx.Done(); ended = true; return nil }},
		},
	}
	done := make(chan error, 1)
	go func() { done <- e.Run(t.Context()) }()
	select {
	case err := <-done:
		if !errors.Is(err, failed) || !ended || e.leading.Load() {
			t.Errorf("Run = %v, other task ended %v, leading %v", err, ended, e.leading.Load())
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the replica goes on leading, and nobody writes")
	}
	next := &election{
		client: e.client, namespace: e.namespace, identity: "two", lease: e.lease, log: e.log,
		tasks: []run.Component{{Name: "task", Run: func(context.Context) error { return failed }}},
	}
	go func() { done <- next.Run(t.Context()) }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("the lease was not given back")
	}
}
