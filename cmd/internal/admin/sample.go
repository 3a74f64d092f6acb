package admin

import (
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Sample is the value of one metric at one moment. Those of one name have to
// agree in Help, Counter and the names of their labels.
type Sample struct {
	Name, Help string
	// Counter says that the value only grows; it is a gauge otherwise.
	Counter bool
	Labels  []Label
	Value   float64
	// Histogram replaces Value unless it is nil.
	Histogram *Histogram
}

// Label is one of a sample.
type Label struct{ Name, Value string }

// Samples returns a Gatherer of what collect emits at each scrape, and of the Go
// runtime and the process. Scrapes may overlap, and so may calls of collect.
func Samples(collect func(emit func(Sample))) prometheus.Gatherer {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), sampler(collect))
	return r
}

// sampler is a collector that does not say beforehand what it has.
type sampler func(emit func(Sample))

// Describe implements prometheus.Collector.
func (sampler) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (s sampler) Collect(out chan<- prometheus.Metric) {
	s(func(m Sample) {
		var names, values []string
		for _, l := range m.Labels {
			names, values = append(names, l.Name), append(values, l.Value)
		}
		desc := prometheus.NewDesc(m.Name, m.Help, names, nil)
		if m.Histogram != nil {
			count, sum, buckets := m.Histogram.read()
			out <- prometheus.MustNewConstHistogram(desc, count, sum, buckets, values...)
			return
		}
		kind := prometheus.GaugeValue
		if m.Counter {
			kind = prometheus.CounterValue
		}
		out <- prometheus.MustNewConstMetric(desc, kind, m.Value, values...)
	})
}

// Histogram counts values by size. Its methods may be called by any number of
// goroutines.
type Histogram struct {
	bounds []float64

	mu     sync.Mutex
	counts []uint64 // of values up to each bound, not beyond the one before
	count  uint64
	sum    float64
}

// NewHistogram returns a Histogram with these upper bounds, in rising order.
func NewHistogram(bounds ...float64) *Histogram {
	return &Histogram{bounds: bounds, counts: make([]uint64, len(bounds))}
}

// Observe counts a value.
func (h *Histogram) Observe(v float64) {
	i, _ := slices.BinarySearch(h.bounds, v)
	h.mu.Lock()
	defer h.mu.Unlock()
	if i < len(h.counts) {
		h.counts[i]++
	}
	h.count++
	h.sum += v
}

// read returns the buckets as Prometheus has them: each with those below it.
func (h *Histogram) read() (count uint64, sum float64, buckets map[float64]uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	buckets = make(map[float64]uint64, len(h.bounds))
	var below uint64
	for i, bound := range h.bounds {
		below += h.counts[i]
		buckets[bound] = below
	}
	return h.count, h.sum, buckets
}
