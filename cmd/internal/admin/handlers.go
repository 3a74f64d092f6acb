package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"html"
	"maps"
	"net/http"
	"net/http/pprof"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

func metricsHandler(cfg Config) http.Handler {
	h := promhttp.HandlerFor(cfg.Gatherer, promhttp.HandlerOpts{
		EnableOpenMetrics:   true,
		ErrorHandling:       promhttp.HTTPErrorOnError,
		MaxRequestsInFlight: maxScrapes,
	})
	mux := http.NewServeMux()
	mux.Handle("/metrics", h)
	mux.Handle("/stats/prometheus", h)
	return mux
}

func readyHandler(readiness *Readiness) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz/ready", func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
		if pending := readiness.Pending(); len(pending) > 0 {
			text(w, http.StatusInternalServerError, "not ready, pending: "+strings.Join(pending, ", ")+"\n")
			return
		}
		text(w, http.StatusOK, "ready\n")
	})
	return mux
}

// healthHandler serves what Kubernetes asks the parts of a control plane.
func healthHandler(cfg Config) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metricsHandler(cfg))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { text(w, http.StatusOK, "ok\n") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if pending := cfg.Readiness.Pending(); len(pending) > 0 {
			text(w, http.StatusServiceUnavailable, "not ready, pending: "+strings.Join(pending, ", ")+"\n")
			return
		}
		text(w, http.StatusOK, "ok\n")
	})
	return mux
}

func adminHandler(cfg Config) http.Handler {
	mux := http.NewServeMux()
	index := []page{{"config_dump", "configuration, workloads, policies and certificates in force"}}
	mux.HandleFunc("/config_dump", func(w http.ResponseWriter, _ *http.Request) { dump(w, cfg.Dump) })
	for _, path := range slices.Sorted(maps.Keys(cfg.Pages)) {
		p := cfg.Pages[path]
		index = append(index, page{path, p.About})
		mux.HandleFunc("/"+path, func(w http.ResponseWriter, _ *http.Request) {
			content, err := p.Content()
			answer(w, content, err)
		})
	}
	if cfg.Levels != nil {
		index = append(index, page{"logging", "POST: show or change log levels"})
		mux.HandleFunc("/logging", func(w http.ResponseWriter, r *http.Request) { logging(w, r, cfg.Levels) })
	}
	if cfg.Quit != nil {
		index = append(index, page{"quitquitquit", "POST: stop the program"})
		mux.HandleFunc("/quitquitquit", func(w http.ResponseWriter, r *http.Request) { quit(w, r, cfg) })
	}
	index = append(index, page{"debug/pprof/", "profiles; profile?seconds=1..300 for CPU time"})
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("/{$}", func(w http.ResponseWriter, _ *http.Request) { dashboard(w, index) })
	return mux
}

func text(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	fmt.Fprint(w, body)
}

// dump writes one pretty-printed object with the keys in order. All of it is made before the first byte goes out, so
// that a part that fails gives an error and not half an object.
func dump(w http.ResponseWriter, parts map[string]func() (any, error)) {
	content := make(map[string]any, len(parts))
	for key, part := range parts {
		value, err := part()
		if err != nil {
			text(w, http.StatusInternalServerError, fmt.Sprintf("dump %s: %v\n", key, err))
			return
		}
		content[key] = value
	}
	answer(w, content, nil)
}

func answer(w http.ResponseWriter, content any, err error) {
	var body []byte
	if err == nil {
		body, err = json.MarshalIndent(content, "", "  ")
	}
	if err != nil {
		text(w, http.StatusInternalServerError, fmt.Sprintf("dump: %v\n", err))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(body, '\n')) // a client that went away needs no answer
}

const loggingHelp = `
usage: POST /logging						(To list current level)
usage: POST /logging?level=<level>				(To change global levels)
usage: POST /logging?level={scope1}={level1},{scope2}={level2}	(To change specific scopes' logging level)
usage: POST /logging?reset					(To return to the levels of the start, before level is applied)

hint: level:	error|warn|info|debug|trace|off
hint: scope:	the scope of a log line, for example proxy
`

func logging(w http.ResponseWriter, r *http.Request, levels *Levels) {
	if r.Method != http.MethodPost {
		text(w, http.StatusMethodNotAllowed, "Invalid HTTP method\n "+loggingHelp)
		return
	}
	query := r.URL.Query()
	level, reset := query.Get("level"), query.Has("reset")
	if level != "" || reset {
		if err := levels.Change(reset, level); err != nil {
			text(w, http.StatusBadRequest, fmt.Sprintf("Invalid level provided: %s: %v\n%s", level, err, loggingHelp))
			return
		}
	}
	text(w, http.StatusOK, fmt.Sprintf("current log level is %s\n", levels))
}

func quit(w http.ResponseWriter, r *http.Request, cfg Config) {
	if r.Method != http.MethodPost {
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	// The stop goes on when the client does not wait for it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), cfg.QuitTimeout)
	defer cancel()
	cfg.Quit(ctx)
	text(w, http.StatusOK, "shutdown now\n")
}

func profile(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	for name, limit := range map[string]int{"seconds": 300, "frequency": 1000} {
		if !query.Has(name) {
			continue
		}
		// The frequency is fixed in Go's profiler; a value out of range is refused all the same.
		if n, err := strconv.Atoi(query.Get(name)); err != nil || n < 1 || n > limit {
			text(w, http.StatusBadRequest, fmt.Sprintf("invalid %s value; expected 1-%d\n", name, limit))
			return
		}
	}
	if !query.Has("seconds") {
		query.Set("seconds", "10")
		r.URL.RawQuery = query.Encode()
	}
	pprof.Profile(w, r)
}

type page struct{ path, about string }

func dashboard(w http.ResponseWriter, pages []page) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	fmt.Fprint(w, "<!doctype html><title>culvert</title><h1>culvert</h1><ul>")
	for _, p := range pages {
		fmt.Fprintf(w, `<li><a href="/%[1]s">%[1]s</a>: %[2]s</li>`, html.EscapeString(p.path), html.EscapeString(p.about))
	}
	fmt.Fprint(w, "</ul>\n")
}
