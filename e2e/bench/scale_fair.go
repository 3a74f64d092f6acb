package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"time"

	"github.com/culvert-mesh/culvert/redirect/topology"
)

// Goals of the fairness measurements.
const (
	goalStalled    = 2.0 // p99 of requests with a stalled stream beside, against without
	goalStalledCPU = 0.05
	goalShare      = 0.2    // how far a bulk stream may be from its share
	goalFloodRate  = 0.5    // answers to a neighbour that asks now and then, against without the flood
	goalFloodWorst = 1000.0 // milliseconds that it may wait for one
)

const (
	bulkStreams  = 8
	requestConns = 32
	stalledPort  = 9100
	sinkPort     = 9101
)

// mixture is what requests and bulk streams get beside each other.
type mixture struct {
	p99      float64 // microseconds
	requests float64 // a second
	bulk     float64 // Gb/s
	worst    float64 // the largest distance of a bulk stream from the mean, as a part of it
}

// fairPart runs bulk streams and requests through one pair of agents, with and without a stream that nobody reads.
func fairPart(ctx context.Context, s *scale) (err error) {
	b, _, err := s.start(ctx, "fair")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeAll([]*bench{b})) }()
	sink := netip.AddrPortFrom(b.lab.server().Addr(), sinkPort)
	if err := b.lab.startLogged(b.lab.server(), "sink", []string{b.lab.self, "tool", "sink", sink.String()}); err != nil {
		return err
	}
	if err := waitListening(b.lab.server(), sinkPort, 10*time.Second); err != nil {
		return err
	}
	var without, with []mixture
	var idleCPU []float64
	for range s.rounds {
		m, err := mix(ctx, b)
		if err != nil {
			return err
		}
		without = append(without, m)
		st, err := startStalled(ctx, b.lab)
		if err != nil {
			return err
		}
		cpu, err := cpuBeside(b, time.Second)
		if err != nil {
			return errors.Join(err, st.end())
		}
		idleCPU = append(idleCPU, cpu)
		m, err = mix(ctx, b)
		if err := errors.Join(err, st.end()); err != nil {
			return err
		}
		with = append(with, m)
	}
	s.atMost("fair_stalled_cpu", "CPUs", *median(idleCPU), goalStalledCPU)
	of := func(ms []mixture, get func(mixture) float64) float64 {
		var values []float64
		for _, m := range ms {
			values = append(values, get(m))
		}
		return *median(values)
	}
	p99 := func(m mixture) float64 { return m.p99 }
	s.tell("fair_p99", "µs", of(without, p99))
	s.tell("fair_p99_stalled", "µs", of(with, p99))
	s.atMost("fair_p99_ratio", "×", of(with, p99)/of(without, p99), goalStalled)
	s.tell("fair_requests", "requests/s", of(without, func(m mixture) float64 { return m.requests }))
	s.tell("fair_requests_stalled", "requests/s", of(with, func(m mixture) float64 { return m.requests }))
	s.tell("fair_bulk", "Gb/s", of(without, func(m mixture) float64 { return m.bulk }))
	s.tell("fair_bulk_stalled", "Gb/s", of(with, func(m mixture) float64 { return m.bulk }))
	s.atMost("fair_bulk_distance", "of the mean", of(without, func(m mixture) float64 { return m.worst }), goalShare)
	s.atMost("fair_bulk_distance_stalled", "of the mean", of(with, func(m mixture) float64 { return m.worst }), goalShare)
	return nil
}

// cpuBeside is how much of a processor the agents use while nothing happens.
func cpuBeside(b *bench, d time.Duration) (float64, error) {
	before, err := cpuOf(b.system.agents())
	if err != nil {
		return 0, err
	}
	time.Sleep(d)
	after, err := cpuOf(b.system.agents())
	return (after - before).Seconds() / d.Seconds(), err
}

// mix runs bulk streams and, while they run, requests.
func mix(ctx context.Context, b *bench) (mixture, error) {
	target := netip.AddrPortFrom(b.lab.server().Addr(), sinkPort)
	type bulk struct {
		out []byte
		err error
	}
	done := make(chan bulk, 1)
	go func() {
		out, err := b.lab.output(ctx, b.lab.self, "tool", "pour", fmt.Sprintf("-streams=%d", bulkStreams), "-duration="+b.duration.String(), target.String())
		done <- bulk{out, err}
	}()
	time.Sleep(pourSettled(bulkStreams))
	r, err := wrk(ctx, b, b.duration, 2, requestConns)
	got := <-done
	if err := errors.Join(err, got.err); err != nil {
		return mixture{}, err
	}
	m, err := parseShares(got.out)
	m.p99, m.requests = r.P99, float64(r.Requests)/r.Microseconds*1e6
	return m, err
}

// parseShares reads what each stream got.
func parseShares(out []byte) (mixture, error) {
	var p pourResult
	if err := json.Unmarshal(out, &p); err != nil {
		return mixture{}, fmt.Errorf("parse output of the bulk streams: %w", err)
	}
	if len(p.Bytes) == 0 || p.Seconds == 0 {
		return mixture{}, errors.New("there were no bulk streams")
	}
	sum := 0.0
	for _, n := range p.Bytes {
		sum += float64(n)
	}
	m := mixture{bulk: sum * 8 / p.Seconds / 1e9}
	mean := sum / float64(len(p.Bytes))
	for _, n := range p.Bytes {
		m.worst = max(m.worst, math.Abs(float64(n)-mean)/mean)
	}
	return m, nil
}

// stalled is a connection both ends of which have written until nothing went any more, and neither reads.
type stalled struct {
	listener       net.Listener
	client, server net.Conn
}

func startStalled(ctx context.Context, l *lab) (*stalled, error) {
	listener, err := l.server().Listen(ctx, fmt.Sprintf("0.0.0.0:%d", stalledPort))
	if err != nil {
		return nil, err
	}
	s := &stalled{listener: listener}
	s.client, err = l.client().Dial(ctx, "tcp", netip.AddrPortFrom(l.server().Addr(), stalledPort).String())
	if err != nil {
		return nil, errors.Join(err, s.end())
	}
	if s.server, err = listener.Accept(); err != nil {
		return nil, errors.Join(err, s.end())
	}
	for _, c := range []net.Conn{s.client, s.server} {
		if err := fill(c); err != nil {
			return nil, errors.Join(err, s.end())
		}
	}
	return s, nil
}

// fill writes until nothing has gone for half a second.
func fill(c net.Conn) error {
	b := make([]byte, 64<<10)
	for {
		_ = c.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
		if _, err := c.Write(b); errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func (s *stalled) end() error {
	var failed []error
	for _, c := range []interface{ Close() error }{s.client, s.server, s.listener} {
		if c != nil {
			failed = append(failed, c.Close())
		}
	}
	return errors.Join(failed...)
}

// floodPart lets others on the same nodes open connections as fast as they can: an enrolled pod new ones through the
// mesh, a stranger handshakes that lead nowhere, at the listener of the busy server itself.
func floodPart(ctx context.Context, s *scale) (err error) {
	m, err := startMany(ctx, s, 2, 2)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	stranger, err := m.lab.AddPlainPod("node-a", "default", "stranger")
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	rate := netip.AddrPortFrom(m.servers[1].Addr(), appRate.port)
	if _, err := m.servers[1].Start(exec.Command(self, "tool", "rate-server", rate.String())); err != nil {
		return err
	}
	if err := waitListening(m.servers[1], appRate.port, 10*time.Second); err != nil {
		return err
	}
	length := time.Duration(4*s.rounds) * (s.duration + time.Second)
	floods := []struct {
		name string
		from *topology.Pod
		args []string
	}{
		{"flood_connections", m.clients[1].Pod, []string{"tool", "rate-client", "-duration=" + length.String(), rate.String()}},
		{"flood_handshakes", stranger.Pod, []string{"tool", "greet", netip.AddrPortFrom(m.servers[0].Addr(), 15008).String()}},
	}
	for _, f := range floods {
		alone, err := m.neighbour(ctx, s)
		if err != nil {
			return err
		}
		p, err := f.from.Start(exec.Command(self, f.args...))
		if err != nil {
			return err
		}
		flooded, err := m.neighbour(ctx, s)
		ended := p.Usage() != nil
		_ = p.Signal(os.Kill) // it may have ended by itself
		<-p.Done()
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		if ended {
			s.broken("%s: the flood has ended too early", f.name)
		}
		s.tell(f.name+"_requests_alone", "requests/s", alone.requests)
		s.tell(f.name+"_requests", "requests/s", flooded.requests)
		s.tell(f.name+"_p99_alone", "ms", milliseconds(alone.p99))
		s.tell(f.name+"_p99", "ms", milliseconds(flooded.p99))
		s.atMost(f.name+"_worst", "ms", milliseconds(flooded.worst), goalFloodWorst)
		s.atLeast(f.name+"_answers", "of those alone", flooded.answers/alone.answers, goalFloodRate)
	}
	return nil
}

// neighbour is what connections get that are not part of a flood.
type neighbour struct {
	answers    float64       // of connections that ask now and then
	p99, worst time.Duration // of those
	requests   float64       // a second, of 32 connections that ask all the time
}

// pulseConns is how many connections of the neighbour ask now and then.
const pulseConns = 8

// neighbour measures connections from the first client to the first server: those that ask now and then show whether
// they are served at all when others want everything; those that want all there is, which part of it they get.
func (m *manyPods) neighbour(ctx context.Context, s *scale) (neighbour, error) {
	var n neighbour
	beats, err := pulses(ctx, m.clients[0].Pod, netip.AddrPortFrom(m.servers[0].Addr(), appHold.port), pulseConns, func() error {
		return rest(ctx, s.duration*time.Duration(s.rounds))
	})
	if err != nil {
		return n, err
	}
	took := lengths(beats)
	n.answers, n.p99, n.worst = float64(len(took)), took[len(took)*99/100], took[len(took)-1]
	var rate []float64
	for range s.rounds {
		r, err := wrkFrom(ctx, m.clients[0].Pod, m.dir(), netip.AddrPortFrom(m.servers[0].Addr(), appHTTP.port), s.duration, 2, requestConns)
		if err != nil {
			return n, err
		}
		rate = append(rate, float64(r.Requests)/r.Microseconds*1e6)
	}
	n.requests = *median(rate)
	return n, nil
}
