// Package access connects a command to a cluster and says in plain words why that failed.
//
// It leaves to the callers what to do there. An Access is not changed after it was made, and its clients may be used from
// any goroutine.
package access

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Access is a connection to a cluster.
type Access struct {
	Kube    kubernetes.Interface
	Dynamic dynamic.Interface
	// Config is what both were made from; nil in tests.
	Config *rest.Config
	// Server is the address of the API server, for messages.
	Server string
}

// Getter gives the configuration that flags, environment and files decide; genericclioptions.ConfigFlags is one.
type Getter interface {
	ToRESTConfig() (*rest.Config, error)
}

// answerTimeout bounds one request: a server that does not answer is soon said not to.
const answerTimeout = 30 * time.Second

// Connect makes the clients. It sends nothing: ask for [Access.Version] to know whether anybody answers.
func Connect(getter Getter) (*Access, error) {
	config, err := getter.ToRESTConfig()
	if err != nil {
		if clientcmd.IsEmptyConfig(err) {
			return nil, errors.New("find cluster: no kubeconfig: set --kubeconfig or $KUBECONFIG")
		}
		// Of a file that is something else the library tells its own types.
		if before, _, other := strings.Cut(err.Error(), "couldn't get version/kind"); other {
			return nil, explained{fmt.Sprintf("find cluster: %sit is not a kubeconfig", before), err}
		}
		return nil, fmt.Errorf("find cluster: %w", err)
	}
	if config.Timeout == 0 {
		config.Timeout = answerTimeout
	}
	// A command makes a burst of requests and ends.
	config.QPS, config.Burst = 50, 200
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("use kubeconfig: %w", err)
	}
	dyn, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("use kubeconfig: %w", err)
	}
	return &Access{Kube: kube, Dynamic: dyn, Config: config, Server: config.Host}, nil
}

// Version asks the server for its version and refuses one below the least, "major.minor".
func (a *Access) Version(ctx context.Context, least string) (*version.Version, error) {
	info, err := a.Kube.Discovery().ServerVersion()
	if err != nil {
		return nil, a.Explain(err)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	have, err := version.ParseGeneric(info.GitVersion)
	if err != nil {
		return nil, fmt.Errorf("read the server's version %q: %w", info.GitVersion, err)
	}
	want, err := version.ParseGeneric(least)
	if err != nil {
		return nil, fmt.Errorf("read version %q: %w", least, err)
	}
	if have.LessThan(want) {
		return have, fmt.Errorf("server runs Kubernetes %s, which is too old: %s or later is needed", info.GitVersion, least)
	}
	return have, nil
}

// Explain says what a failed request means for somebody who has a terminal and nothing else. The error stays wrapped.
func (a *Access) Explain(err error) error {
	if err == nil {
		return nil
	}
	var network net.Error
	var urlErr *url.Error
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("the cluster at %s does not accept your credentials: %w", a.Server, err)
	case apierrors.IsForbidden(err):
		// What the server says, without what libraries on the way put before it.
		if status, is := errors.AsType[*apierrors.StatusError](err); is {
			return explained{"no permission: " + status.ErrStatus.Message, err}
		}
		return fmt.Errorf("no permission: %w", err)
	case errors.As(err, &urlErr), errors.As(err, &network):
		if isCertificate(err) {
			return fmt.Errorf("the server at %s is not the one of the kubeconfig: %w", a.Server, err)
		}
		cause := err
		if urlErr != nil {
			cause = urlErr.Err // without the whole address of the request
		}
		return explained{fmt.Sprintf("no cluster answers at %s: %v", a.Server, cause), err}
	}
	return err
}

// explained says an error in other words.
type explained struct {
	text string
	error
}

func (e explained) Error() string { return e.text }
func (e explained) Unwrap() error { return e.error }

func isCertificate(err error) bool {
	text := err.Error()
	return strings.Contains(text, "x509:") || strings.Contains(text, "tls:")
}
