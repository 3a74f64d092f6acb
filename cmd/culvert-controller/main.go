// Command culvert-controller is the mesh's control plane: it makes workloads and policies from the objects of a cluster
// and publishes them to node agents (delta xDS), and it is the certificate authority (Istio's CA protocol), both on one
// port. Every replica serves; an elected one writes. See `culvert-controller --help`.
package main

import (
	"context"
	"os"

	"k8s.io/klog/v2"

	"github.com/culvert-mesh/culvert/cmd/internal/admin"
	"github.com/culvert-mesh/culvert/cmd/internal/conf"
	"github.com/culvert-mesh/culvert/cmd/internal/launch"
)

// Set by the linker; see the Makefile.
var (
	version  = "unknown"
	revision = "unknown"
)

func main() {
	os.Exit(launch.Program[*settings]{
		Name: "culvert-controller", Version: version, Revision: revision, Build: build,
		Read:   func(args []string) (*settings, *conf.Set, error) { return readSettings(args, os.LookupEnv) },
		Common: func(s *settings) launch.Common { return s.common },
	}.Start(os.Args[1:]))
}

func build(s *settings, g launch.Given) (func(context.Context) error, error) {
	klog.SetSlogLogger(g.Logger.With(admin.ScopeKey, "kubernetes")) // what the client library has to say
	reach, err := connect(s)
	if err != nil {
		return nil, err
	}
	c, err := newController(s, g.Settings, reach, g.Levels, g.Logger, g.Signals)
	if err != nil {
		return nil, err
	}
	return c.run, nil
}
