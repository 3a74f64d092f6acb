package telemetry

import (
	"slices"
	"strings"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/model"
)

// Label is one name and value of a Sample.
type Label struct{ Name, Value string }

// Sample is one figure of another component (loops, tunnels, pods), read when
// somebody scrapes.
type Sample struct {
	// Name is the whole name of the metric; counters end in "_total".
	Name string
	// Help is taken from the first sample of a name.
	Help string
	// Counter says that the value never decreases; otherwise it is a gauge. The
	// first sample of a name decides.
	Counter bool
	Labels  []Label
	Value   float64
}

// samples collects the Config's samples into families. A sample that could spoil
// the whole scrape (a bad name, one that exists already, the same labels twice) is
// left out.
func (t *Telemetry) samples(existing []*dto.MetricFamily) []*dto.MetricFamily {
	taken := make(map[string]bool, len(existing))
	for _, f := range existing {
		taken[f.GetName()] = true
	}
	var families []*dto.MetricFamily
	byName := make(map[string]*dto.MetricFamily)
	seen := make(map[string]bool)
	for _, collect := range t.cfg.Samples {
		collect(func(s Sample) {
			key, ok := s.key()
			if !ok || taken[s.Name] || seen[key] {
				return
			}
			seen[key] = true
			f := byName[s.Name]
			if f == nil {
				kind := dto.MetricType_GAUGE
				if s.Counter {
					kind = dto.MetricType_COUNTER
				}
				f = family(s.Name, s.Help, kind)
				byName[s.Name] = f
				families = append(families, f)
			}
			labels := slices.Clone(s.Labels)
			for i := range labels {
				labels[i].Value = strings.ToValidUTF8(labels[i].Value, "�")
			}
			f.Metric = append(f.Metric, metric(f.GetType(), s.Value, labels...))
		})
	}
	return families
}

// key identifies the sample; false when a name is not one.
func (s Sample) key() (string, bool) {
	if !model.LegacyValidation.IsValidMetricName(s.Name) {
		return "", false
	}
	var b strings.Builder
	b.WriteString(s.Name)
	for i, l := range s.Labels {
		if !model.LegacyValidation.IsValidLabelName(l.Name) ||
			slices.ContainsFunc(s.Labels[:i], func(o Label) bool { return o.Name == l.Name }) {
			return "", false
		}
		b.WriteString("\xff" + l.Name + "\xff" + l.Value)
	}
	return b.String(), true
}
