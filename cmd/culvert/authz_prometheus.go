package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/cmd/internal/authz"
	"github.com/culvert-mesh/culvert/cmd/internal/inspect"
	"github.com/culvert-mesh/culvert/identity"
)

const (
	prometheusTimeout = time.Minute
	maxPrometheus     = 256 << 20
)

// Connections are counted as opened before policy judges them, and as failed when it refuses them.
const (
	openedQuery  = `istio_tcp_connections_opened_total{reporter="destination"}`
	refusedQuery = `istio_tcp_connections_failed_total{reporter="destination",response_flags="DENY"}`
	flowLabels   = "source_principal,source_workload,source_workload_namespace,destination_workload,destination_workload_namespace," +
		"destination_service_name,destination_service_namespace"
)

// series is one series of an answer of Prometheus.
type series struct {
	Metric map[string]string `json:"metric"`
	Value  [2]any            `json:"value"` // time, and the value as a text
}

// prometheusFlows makes flows of the agents' metrics. Ports are not among their labels.
func prometheusFlows(ctx context.Context, server string, window time.Duration) (*authz.Flows, error) {
	ctx, cancel := context.WithTimeout(ctx, prometheusTimeout)
	defer cancel()
	counts := make(map[authz.Flow]float64)
	flows := &authz.Flows{Since: time.Now().Add(-window).Truncate(time.Second), Flows: []authz.Flow{}}
	for i, metric := range []string{openedQuery, refusedQuery} {
		query := fmt.Sprintf("sum by (%s) (max_over_time(%s[%ds]))", flowLabels, metric, int(window.Seconds()))
		all, err := askPrometheus(ctx, server, query)
		if err != nil {
			return nil, fmt.Errorf("ask Prometheus at %s: %w", server, err)
		}
		for _, s := range all {
			f, ok := flowOf(s.Metric)
			text, _ := s.Value[1].(string)
			n, err := strconv.ParseFloat(text, 64)
			if err == nil && i == 0 && beyondLimit(s.Metric) {
				flows.Dropped += uint64(max(n, 0))
			}
			if !ok || err != nil {
				continue
			}
			if i == 1 {
				n = -n
			}
			counts[f] += n
		}
	}
	for f, n := range counts {
		if n >= 1 {
			f.Count = uint64(n)
			flows.Flows = append(flows.Flows, f)
		}
	}
	return authz.MergeFlows(flows), nil
}

// beyondLimit reports whether a series has all connections of an agent whose limit of series was reached.
func beyondLimit(labels map[string]string) bool {
	return labels["source_workload"] == "overflow" && labels["destination_workload"] == "overflow" && labels["destination_workload_namespace"] == "unknown"
}

// flowOf reads the labels of a series. It reports false for one whose destination is not known.
func flowOf(labels map[string]string) (authz.Flow, bool) {
	value := func(name string) string {
		if v := labels[name]; v != "unknown" && v != "overflow" {
			return inspect.Clean(v)
		}
		return ""
	}
	f := authz.Flow{
		Source: authz.FlowSource{Namespace: value("source_workload_namespace"), Workload: value("source_workload")},
		Destination: authz.FlowDestination{
			Namespace: value("destination_workload_namespace"), Workload: value("destination_workload"),
			ServiceNamespace: value("destination_service_namespace"), Service: value("destination_service_name"),
		},
	}
	if principal := value("source_principal"); principal != "" {
		id, err := identity.Parse("spiffe://" + strings.TrimPrefix(principal, "spiffe://"))
		if err != nil {
			return f, false
		}
		f.Source.Principal = id.Principal()
	}
	return f, f.Destination.Namespace != "" && f.Destination.Workload != ""
}

// askPrometheus sends an instant query (Prometheus' HTTP API).
func askPrometheus(ctx context.Context, server, query string) ([]series, error) {
	at, err := url.Parse(server)
	if err != nil {
		return nil, err
	}
	if at.Scheme != "http" && at.Scheme != "https" {
		return nil, errors.New("want http://… or https://…")
	}
	at = at.JoinPath("api/v1/query")
	body := url.Values{"query": {query}}.Encode()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, at.String(), strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, maxPrometheus))
	if err != nil {
		return nil, err
	}
	var answer struct {
		Status string `json:"status"`
		Error  string `json:"error"`
		Data   struct {
			ResultType string   `json:"resultType"`
			Result     []series `json:"result"`
		} `json:"data"`
	}
	if err := json.Unmarshal(text, &answer); err != nil || answer.Status == "" {
		return nil, fmt.Errorf("it answers %s, not as Prometheus does", inspect.Clean(response.Status))
	}
	if answer.Status != "success" || answer.Data.ResultType != "vector" {
		return nil, fmt.Errorf("it answers %s: %s", inspect.Clean(answer.Status), inspect.Clean(answer.Error))
	}
	return answer.Data.Result, nil
}
