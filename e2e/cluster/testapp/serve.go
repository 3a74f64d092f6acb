package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// who is what the server says of itself and of the request.
type who struct {
	Pod       string `json:"pod"`
	Namespace string `json:"namespace"`
	Node      string `json:"node"`
	Version   string `json:"version"`
	Remote    string `json:"remote"` // the client as the server sees it
	Local     string `json:"local"`
	Host      string `json:"host"`
	Payload   string `json:"payload,omitempty"` // of the request's query "payload"
}

func serve(args []string) (any, error) {
	flags := flag.NewFlagSet("serve", flag.ExitOnError)
	httpAddrs := flags.String("http", ":8080", "addresses for HTTP, comma separated")
	echoAddrs := flags.String("echo", ":9000", "addresses for the TCP echo")
	grpcAddr := flags.String("grpc", "", "address for gRPC health checks; empty for none")
	delay := flags.Duration("ready-after", 0, "time until /ready says yes")
	_ = flags.Parse(args) // it exits
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()

	errs := make(chan error, 16)
	var probes atomic.Int64
	handler := handler(time.Now().Add(*delay), &probes)
	for addr := range split(*httpAddrs) {
		go func() {
			errs <- (&http.Server{Addr: addr, Handler: handler, ReadHeaderTimeout: 10 * time.Second}).ListenAndServe()
		}()
	}
	for addr := range split(*echoAddrs) {
		listener, err := net.Listen("tcp", addr)
		if err != nil {
			return nil, err
		}
		go func() { errs <- echo(listener) }()
	}
	for addr := range split(*grpcAddr) {
		listener, err := net.Listen("tcp", addr)
		if err != nil {
			return nil, err
		}
		server := grpc.NewServer()
		healthpb.RegisterHealthServer(server, health.NewServer())
		go func() { errs <- server.Serve(listener) }()
	}
	select {
	case <-ctx.Done():
		return "ended", nil
	case err := <-errs:
		return nil, err
	}
}

func split(list string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for addr := range strings.SplitSeq(list, ",") {
			if addr != "" && !yield(addr) {
				return
			}
		}
	}
}

func handler(ready time.Time, probes *atomic.Int64) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(who{
			Pod: os.Getenv("POD_NAME"), Namespace: os.Getenv("POD_NAMESPACE"), Node: os.Getenv("NODE_NAME"), Version: os.Getenv("VERSION"),
			Remote: r.RemoteAddr, Local: local.String(), Host: r.Host, Payload: r.URL.Query().Get("payload"),
		})
	})
	mux.HandleFunc("/ready", func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.UserAgent(), "kube-probe/") {
			probes.Add(1)
		}
		if time.Now().Before(ready) {
			http.Error(w, "not yet", http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("/probes", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, strconv.FormatInt(probes.Load(), 10))
	})
	return mux
}

// echo sends back what comes and ends its direction when the client ends its own.
func echo(listener net.Listener) error {
	for {
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		go func() {
			defer func() { _ = conn.Close() }()
			_, _ = io.Copy(conn, conn)
		}()
	}
}
