package status

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/culvert-mesh/culvert/workload/source/kube"
)

const (
	// patience is how many attempts may fail before that is said.
	patience = 5
	// DefaultBackoff is the wait after the first failure; it doubles, up to
	// maxBackoff.
	DefaultBackoff = 500 * time.Millisecond
	maxBackoff     = 5 * time.Minute
	// settleTime is how long a write is given to come back through the watch
	// before it is taken for undone by somebody else and written again; it
	// doubles, up to maxSettle.
	settleTime = time.Minute
	maxSettle  = time.Hour
	// parallel is the number of writes at a time.
	parallel = 4
	// writeTimeout bounds one attempt.
	writeTimeout = 15 * time.Second
)

// Source tells which objects have other conditions than they should, and when
// the answer changes. kube.Source is one.
type Source interface {
	Reports() ([]kube.Report, <-chan struct{})
}

// Config says what a Writer writes and where.
type Config struct {
	// Config reaches the API server. Required unless Client is given.
	Config *rest.Config
	// Client is used instead of one made from Config; a seam for tests.
	Client dynamic.Interface
	// Source says what to write. Required.
	Source Source
	// Logger gets one line for each set of conditions that cannot be written, and
	// one when it could be after all. Nil discards.
	Logger *slog.Logger
	// Backoff is the wait after a first failure; 0 means DefaultBackoff.
	Backoff time.Duration
}

// Writer keeps conditions up to date.
type Writer struct {
	cfg     Config
	client  dynamic.Interface
	failed  atomic.Uint64
	failing atomic.Int64
}

// Failed returns how many attempts have failed.
func (w *Writer) Failed() uint64 { return w.failed.Load() }

// Failing returns how many objects there are now whose last attempt failed. It is
// zero in who does not lead.
func (w *Writer) Failing() int { return int(w.failing.Load()) }

// New returns a Writer that has not written anything yet.
func New(cfg Config) (*Writer, error) {
	var errs []error
	if cfg.Config == nil && cfg.Client == nil {
		errs = append(errs, errors.New("configuration of the client is missing"))
	}
	if cfg.Source == nil {
		errs = append(errs, errors.New("source is missing"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("new status writer: %w", err)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Backoff <= 0 {
		cfg.Backoff = DefaultBackoff
	}
	w := &Writer{cfg: cfg, client: cfg.Client}
	if w.client == nil {
		c, err := dynamic.NewForConfig(cfg.Config)
		if err != nil {
			return nil, fmt.Errorf("new status writer: %w", err)
		}
		w.client = c
	}
	return w, nil
}

// name names an object.
type name struct{ resource, namespace, name string }

// attempt is what was last tried for an object.
type attempt struct {
	want, have, uid string // what was to be written in place of what
	tries           int
	next            time.Time // not before
	written         bool
	failed          bool // the last one
	told            bool // that it fails
	busy            bool
}

// outcome is the end of one write.
type outcome struct {
	name name
	err  error
}

// run is one run of a Writer, of the goroutine of Run.
type run struct {
	*Writer
	tried    map[name]*attempt
	outcomes chan outcome
	busy     int
	writes   sync.WaitGroup
}

// Run writes until ctx ends, when leadership does. It returns nil then, after
// the last write has ended.
func (w *Writer) Run(ctx context.Context) error {
	r := &run{Writer: w, tried: make(map[name]*attempt), outcomes: make(chan outcome, parallel)}
	defer r.writes.Wait()
	defer w.failing.Store(0)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		reports, changed := w.cfg.Source.Reports()
		next := r.start(ctx, reports, time.Now())
		timer.Stop()
		if !next.IsZero() {
			timer.Reset(time.Until(next))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-timer.C:
		case o := <-r.outcomes:
			r.end(o, time.Now())
		}
	}
}

// start begins the writes that are due, as many as may run. It returns when
// the next one is due, or nothing.
func (r *run) start(ctx context.Context, reports []kube.Report, now time.Time) (next time.Time) {
	there := make(map[name]bool, len(reports))
	for i := range reports {
		report := reports[i]
		n := name{report.Resource.GroupResource().String(), report.Namespace, report.Name}
		there[n] = true
		a := r.attempt(n, &report)
		switch {
		case a.busy:
		case now.Before(a.next):
			if next.IsZero() || a.next.Before(next) {
				next = a.next
			}
		case r.busy < parallel:
			r.busy++
			a.busy, a.written = true, false
			r.writes.Go(func() {
				err := r.write(ctx, &report)
				select {
				case r.outcomes <- outcome{n, err}:
				case <-ctx.Done():
				}
			})
		}
	}
	failing := int64(0)
	for n, a := range r.tried {
		if there[n] && a.failed {
			failing++
		}
		// It is as it should be, and has been for a while: who undoes a write
		// at once does not get an answer at once.
		if !there[n] && !a.busy && !now.Before(a.next) {
			delete(r.tried, n)
		}
	}
	r.failing.Store(failing)
	return next
}

// attempt returns what is known of the object's writes. It begins anew when
// something else is to be written.
func (r *run) attempt(n name, report *kube.Report) *attempt {
	want, have := fmt.Sprint(report.Want, report.Addresses), fmt.Sprint(report.Have, report.HaveAddresses)
	a := r.tried[n]
	switch {
	case a == nil:
		a = new(attempt)
		r.tried[n] = a
	case a.busy:
		return a
	case a.want == want && a.uid == report.UID:
		if a.have != have && !a.written {
			a.tries, a.next = 0, time.Time{}
		}
		a.have = have
		return a
	default:
		*a = attempt{}
	}
	a.want, a.have, a.uid = want, have, report.UID
	return a
}

// end takes the end of a write.
func (r *run) end(o outcome, now time.Time) {
	r.busy--
	a := r.tried[o.name]
	if a == nil {
		return
	}
	a.busy = false
	a.tries++
	a.failed = o.err != nil
	log := r.cfg.Logger.With("resource", o.name.resource, "namespace", o.name.namespace, "name", o.name.name, "attempts", a.tries)
	if o.err == nil {
		if a.told {
			log.Info("status is written at last")
			a.told = false
		}
		a.written, a.next = true, now.Add(doubled(settleTime, a.tries-1, maxSettle))
		return
	}
	r.failed.Add(1)
	a.next = now.Add(doubled(r.cfg.Backoff, a.tries-1, maxBackoff))
	if a.tries >= patience && !a.told {
		a.told = true
		log.Warn("status cannot be written; it goes on being tried", "every", maxBackoff, "error", o.err)
	}
}

// doubled returns d, doubled so often, but not above limit.
func doubled(d time.Duration, times int, limit time.Duration) time.Duration {
	for ; times > 0 && d < limit; times-- {
		d *= 2
	}
	return min(d, limit)
}
