package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/spf13/cobra"
)

// secret is what the demo's application sends and the demo looks for on the wire.
const secret = "the-password-is-swordfish"

// demoAppCommand is the application of the demo: an ordinary web server and client that know nothing of a mesh.
func demoAppCommand() *cobra.Command {
	app := &cobra.Command{Use: "app", Hidden: true}
	var listen, name string
	serve := &cobra.Command{Use: "serve", Args: noArguments, RunE: func(*cobra.Command, []string) error {
		server := &http.Server{Addr: listen, Handler: demoHandler(name), ReadHeaderTimeout: 5 * time.Second}
		return server.ListenAndServe()
	}}
	serve.Flags().StringVar(&listen, "listen", ":8080", "address")
	serve.Flags().StringVar(&name, "name", "app", "what the server calls itself")
	fetch := &cobra.Command{Use: "fetch URL", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		client := &http.Client{Timeout: 20 * time.Second}
		resp, err := client.Get(args[0]) //nolint:noctx // the client has a timeout
		if err != nil {
			return err
		}
		defer func() { _ = resp.Body.Close() }()
		_, err = io.Copy(cmd.OutOrStdout(), resp.Body)
		return err
	}}
	follow := &cobra.Command{Use: "follow ADDRESS", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		return followStream(cmd.OutOrStdout(), args[0])
	}}
	app.AddCommand(serve, fetch, follow)
	return app
}

func demoHandler(name string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintf(w, "%s says to %s: %s\n", name, host, secret)
	})
	mux.HandleFunc("GET /stream", func(w http.ResponseWriter, r *http.Request) {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for i := 0; ; i++ {
			if _, err := fmt.Fprintf(w, "%d\n", i); err != nil {
				return
			}
			_ = http.NewResponseController(w).Flush()
			select {
			case <-r.Context().Done():
				return
			case <-tick.C:
			}
		}
	})
	return mux
}

// followStream reads an endless answer and says how it ended.
func followStream(out io.Writer, url string) error {
	resp, err := http.Get(url) //nolint:noctx,gosec // it is meant to last; the address is the demo's own
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	buf := make([]byte, 4096)
	for first := true; ; first = false {
		_, err := resp.Body.Read(buf)
		if errors.Is(err, io.EOF) {
			return errors.New("the stream ended in order")
		}
		if err != nil {
			return fmt.Errorf("the stream was cut: %w", err)
		}
		if first {
			fmt.Fprintln(out, "streaming")
		}
	}
}
