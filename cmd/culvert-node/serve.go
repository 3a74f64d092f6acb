package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/culvert-mesh/culvert/cmd/internal/admin"
	"github.com/culvert-mesh/culvert/cmd/internal/run"
	"github.com/culvert-mesh/culvert/workload/telemetry"
)

func (n *node) buildAdmin(levels *admin.Levels) ([]run.Component, error) {
	s := n.settings
	cfg := admin.Config{Logger: n.scope("admin"), Gatherer: n.telemetry, Readiness: &n.ready, Dump: n.dump(), Pages: n.pages(), Levels: levels, QuitTimeout: s.drain}
	cfg.Quit = func(ctx context.Context) {
		n.group.Stop()
		select {
		case <-n.group.Drained():
		case <-ctx.Done():
		}
	}
	for _, l := range []struct {
		flag string
		addr string
		to   *net.Listener
	}{{"admin-address", s.common.Admin.String(), &cfg.AdminListener}, {"metrics-address", s.metrics.String(), &cfg.MetricsListener}, {"ready-address", s.ready.String(), &cfg.ReadyListener}} {
		var lc net.ListenConfig
		listener, err := lc.Listen(context.Background(), "tcp", l.addr)
		if err != nil {
			return nil, fmt.Errorf("--%s: %w", l.flag, err)
		}
		*l.to = listener
	}
	server, err := admin.New(cfg)
	if err != nil {
		return nil, err
	}
	return []run.Component{{Name: "admin", Run: server.Run}}, nil
}

// pages are what the admin server shows beside what ztunnel's does.
func (n *node) pages() map[string]admin.Page {
	return map[string]admin.Page{
		"plaintext": {About: "who speaks to whom without mTLS", Content: func() (any, error) { return n.plaintext.report(), nil }},
		"flows":     {About: "who came to which port of which workload, and was let in", Content: func() (any, error) { return n.flows.report(n.liveFlows(), time.Now()), nil }},
	}
}

func (n *node) newGroup(parts []run.Component, signals <-chan os.Signal) error {
	timeout := n.settings.drain
	if timeout == 0 {
		timeout = -1 // cut at once
	}
	var err error
	n.group, err = run.New(run.Config{Logger: n.log, DrainTimeout: timeout, Signals: signals}, parts...)
	return err
}

// samples gives the figures of loops, tunnels and pods.
func (n *node) samples(emit func(telemetry.Sample)) {
	for i, l := range n.loops {
		st := l.Stats()
		label := []telemetry.Label{{Name: "loop", Value: strconv.Itoa(i)}}
		emit(telemetry.Sample{Name: "culvert_loop_wakeups_total", Help: "Times that an event loop had events to handle.", Counter: true, Labels: label, Value: float64(st.Wakeups)})
		emit(telemetry.Sample{Name: "culvert_loop_events_total", Help: "Events that an event loop has handled.", Counter: true, Labels: label, Value: float64(st.Events)})
		emit(telemetry.Sample{Name: "culvert_loop_posts_total", Help: "Pieces of work given to an event loop by other threads.", Counter: true, Labels: label, Value: float64(st.Posts)})
		emit(telemetry.Sample{Name: "culvert_loop_sockets", Help: "Sockets that an event loop owns.", Labels: label, Value: float64(st.Sockets)})
	}
	outbound, inbound := 0, 0
	for _, p := range n.proxy.Pods() {
		o, i := p.Tunnels()
		outbound, inbound = outbound+o, inbound+i
	}
	for direction, count := range map[string]int{"outbound": outbound, "inbound": inbound} {
		emit(telemetry.Sample{Name: "culvert_tunnels", Help: "HBONE connections that are open.", Labels: []telemetry.Label{{Name: "direction", Value: direction}}, Value: float64(count)})
	}
	n.plaintext.samples(emit)
	n.flows.samples(emit)
	n.passing.samples(emit)
	st := n.set.Stats()
	emit(telemetry.Sample{Name: "culvert_capture_audits_total", Help: "Times that a pod's capture was compared with what it should be.", Counter: true, Value: float64(st.Audits)})
	emit(telemetry.Sample{Name: "culvert_capture_damaged_total", Help: "Audits that found a difference.", Counter: true, Value: float64(st.Damaged)})
	emit(telemetry.Sample{Name: "culvert_capture_repaired_total", Help: "Differences that were put right.", Counter: true, Value: float64(st.Repaired)})
	emit(telemetry.Sample{Name: "culvert_enrol_failures_total", Help: "Failed attempts to enrol a pod.", Counter: true, Value: float64(st.Failures)})
	states := map[string]int{}
	for _, p := range n.set.Pods() {
		states[string(p.State)]++
	}
	for _, state := range []string{"starting", "enrolled", "failed", "leaving"} {
		emit(telemetry.Sample{Name: "culvert_pods", Help: "Pods by state.", Labels: []telemetry.Label{{Name: "state", Value: state}}, Value: float64(states[state])})
	}
	emit(telemetry.Sample{Name: "workload_manager_active_proxy_count", Help: "Pods that are served.", Value: float64(states["enrolled"])})
	emit(telemetry.Sample{Name: "workload_manager_pending_proxy_count", Help: "Pods that wait to be served.", Value: float64(states["starting"] + states["failed"])})
}
