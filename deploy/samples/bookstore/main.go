// bookstore is a sample application with the topology of Istio's bookinfo: productpage asks details and reviews, and
// reviews (v2 and v3) asks ratings. Which service a process is comes from SERVICE, its version from VERSION; names, ports,
// paths and answers are bookinfo's, so that resources written for that apply to it unchanged.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bookstore:", err)
		os.Exit(1)
	}
}

func run() error {
	version := cmp.Or(os.Getenv("VERSION"), "v1")
	b := backend{
		details: cmp.Or(os.Getenv("DETAILS_URL"), "http://details:9080"),
		reviews: cmp.Or(os.Getenv("REVIEWS_URL"), "http://reviews:9080"),
		ratings: cmp.Or(os.Getenv("RATINGS_URL"), "http://ratings:9080"),
		// A connection for each request, as bookinfo does: also a mesh that balances connections shows all versions.
		client: &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}},
	}
	mux := http.NewServeMux()
	switch service := os.Getenv("SERVICE"); service {
	case "productpage":
		productpage(mux, b)
	case "details":
		details(mux)
	case "reviews":
		reviews(mux, b, version)
	case "ratings":
		ratings(mux)
	default:
		return fmt.Errorf("SERVICE is %q, not productpage, details, reviews or ratings", service)
	}
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, map[string]string{"status": "healthy"}) })

	server := &http.Server{Addr: cmp.Or(os.Getenv("ADDRESS"), ":9080"), Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	ended := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		_ = server.Shutdown(grace) // what does not end in time is cut when the process ends
	})
	defer ended()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
