package cluster

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/culvert-mesh/culvert/e2e/cluster/archive"
	"github.com/culvert-mesh/culvert/e2e/cluster/kube"
	"github.com/culvert-mesh/culvert/e2e/cluster/machine"
)

// patience is how long anything may take that must happen: machines in tests are slow and busy.
const patience = 2 * time.Minute

// settings are the flags; nothing is read from the environment, so that `go test ./...` never touches anyone's cluster.
type settings struct {
	kubeconfig, dir, bin string
	keep                 bool
}

// environment is what all tests share.
type environment struct {
	settings
	client kubernetes.Interface
	nodes  *kube.Cluster // nil when the cluster is not one of `make cluster`
	mesh   installation
}

// shared is set once, before the first test.
var shared *environment

func TestMain(m *testing.M) {
	machine.Reexec() // tests switch nodes off and on
	var s settings
	flag.StringVar(&s.kubeconfig, "kubeconfig", "", "kubeconfig file of the cluster to test in")
	flag.StringVar(&s.dir, "cluster", "", "directory of a cluster that `make cluster` started")
	flag.StringVar(&s.bin, "bin", "../../bin", "directory of the built programs and of the image")
	flag.BoolVar(&s.keep, "keep", false, "leave Culvert installed and the namespaces of failed tests in place")
	flag.Parse()
	os.Exit(testMain(m, s))
}

func testMain(m *testing.M, s settings) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	ended := context.AfterFunc(ctx, func() { os.Exit(130) }) // the next run removes what this one leaves
	defer ended()
	e, err := prepare(ctx, s)
	if err != nil {
		fmt.Fprintf(os.Stderr, "e2e: %v\n", err)
		return 1
	}
	shared = e
	code := m.Run()
	if !s.keep {
		if err := e.mesh.remove(ctx); err != nil {
			fmt.Fprintf(os.Stderr, "e2e: %v\n", err)
			code = 1
		}
	}
	return code
}

// prepare finds the cluster and brings the images into it.
func prepare(ctx context.Context, s settings) (*environment, error) {
	if s.dir == "" && s.kubeconfig == "" {
		return nil, errors.New("no cluster is given: run `make cluster`, then `make e2e` (or KUBECONFIG=… make e2e for another one)")
	}
	bin, err := filepath.Abs(s.bin)
	if err != nil {
		return nil, err
	}
	s.bin = bin
	e := &environment{settings: s}
	if s.dir != "" {
		e.nodes, err = kube.Open(kube.Config{Dir: s.dir, Binaries: filepath.Join(bin, "kubernetes")})
		if kube.IsMissing(err) {
			return nil, fmt.Errorf("no cluster runs in %s: run `make cluster` first", s.dir)
		}
		if err != nil {
			return nil, err
		}
		e.kubeconfig = e.nodes.Kubeconfig()
	}
	config, err := clientcmd.BuildConfigFromFlags("", e.kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig: %w", err)
	}
	config.QPS, config.Burst = 50, 100
	if e.client, err = kubernetes.NewForConfig(config); err != nil {
		return nil, err
	}
	if _, err := e.client.Discovery().ServerVersion(); err != nil {
		return nil, fmt.Errorf("the cluster does not answer: %w", err)
	}
	e.mesh = installation{env: e}
	if err := e.mesh.remove(ctx); err != nil { // what an earlier run left
		return nil, err
	}
	return e, e.images(ctx)
}

// Images of the tests. Their names have a registry that does not exist, so that nothing is ever pulled.
const (
	testImage      = "culvert.test/testapp:1"
	bookstoreImage = "culvert.test/bookstore:1"
	meshTag        = "e2e"
	meshImage      = "culvert:" + meshTag
)

// images brings Culvert's image and those of the tests to the nodes. In somebody else's cluster they must be there.
func (e *environment) images(ctx context.Context) error {
	if e.nodes == nil {
		fmt.Fprintf(os.Stderr, "e2e: this cluster must have the images %s, %s and %s\n", meshImage, testImage, bookstoreImage)
		return nil
	}
	dir, err := os.MkdirTemp("", "culvert-e2e-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	files := []string{filepath.Join(e.bin, "e2e", "culvert-image.tar")}
	for program, name := range map[string]string{"testapp": testImage, "bookstore": bookstoreImage} {
		file := filepath.Join(dir, program+".tar")
		if err := archive.Write(file, archive.Image{Name: name, Programs: []string{filepath.Join(e.bin, "e2e", program)}}); err != nil {
			return err
		}
		files = append(files, file)
	}
	for _, file := range files {
		if err := e.nodes.Import(ctx, file); err != nil {
			return err
		}
	}
	return nil
}

// program is the path of a built program.
func (e *environment) program(name string) string { return filepath.Join(e.bin, name) }

// needNodes ends a test that works on the nodes themselves when those are out of reach.
func needNodes(t *testing.T) *kube.Cluster {
	t.Helper()
	if shared.nodes == nil {
		t.Skip("works on the nodes themselves: only in a cluster of `make cluster`")
	}
	return shared.nodes
}
