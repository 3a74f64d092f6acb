// The DNS server of the test cluster: what the Kubernetes DNS specification asks for A, AAAA and CNAME records of services
// (cluster addresses, headless ones with and without host names, external names), and nothing outside of the cluster.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

func main() {
	domain := flag.String("domain", "cluster.local", "domain of the cluster")
	address := flag.String("listen", ":53", "address for UDP and TCP")
	health := flag.String("health", ":8181", "address of /ready")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, *domain, *address, *health); err != nil {
		fmt.Fprintln(os.Stderr, "dns:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, domain, address, health string) error {
	var ready atomic.Bool
	mux := http.NewServeMux()
	mux.HandleFunc("/ready", func(w http.ResponseWriter, _ *http.Request) {
		if !ready.Load() {
			http.Error(w, "not synced", http.StatusServiceUnavailable)
		}
	})
	errs := make(chan error, 3)
	go func() {
		errs <- (&http.Server{Addr: health, Handler: mux, ReadHeaderTimeout: 10 * time.Second}).ListenAndServe()
	}()

	records, err := watch(ctx, domain)
	if err != nil {
		return err
	}
	udp, err := net.ListenPacket("udp", address)
	if err != nil {
		return err
	}
	tcp, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	go func() { errs <- serveUDP(udp, records) }()
	go func() { errs <- serveTCP(tcp, records) }()
	ready.Store(true)
	select {
	case <-ctx.Done():
		return nil
	case err := <-errs:
		return err
	}
}

// watch fills records from the API server.
func watch(ctx context.Context, domain string) (*records, error) {
	config, err := rest.InClusterConfig()
	if err != nil {
		return nil, err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	r := &records{
		domain:   domain,
		services: factory.Core().V1().Services().Lister(),
		slices:   factory.Discovery().V1().EndpointSlices().Lister(),
	}
	factory.Start(ctx.Done())
	for kind, ok := range factory.WaitForCacheSync(ctx.Done()) {
		if !ok {
			return nil, errors.New("not synced: " + kind.String())
		}
	}
	return r, nil
}
