// Package apiserver finds the API server of a program that runs in a cluster.
//
// A person's command finds a cluster in other ways (package access). Nothing is asked of the server here.
package apiserver

import (
	"errors"
	"fmt"
	"net/http"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Config returns how to reach the API server: as the kubeconfig says or, without one, as Kubernetes tells a pod. It is the
// caller's to change.
func Config(kubeconfig string) (*rest.Config, error) {
	var cfg *rest.Config
	var err error
	if kubeconfig != "" {
		cfg, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	} else {
		cfg, err = rest.InClusterConfig()
	}
	switch {
	case errors.Is(err, rest.ErrNotInCluster):
		return nil, errors.New("find the API server: this is not a pod: give --kubeconfig")
	case kubeconfig != "" && clientcmd.IsEmptyConfig(err):
		return nil, fmt.Errorf("find the API server: %s names no cluster: its current context, or the cluster of that, is missing", kubeconfig)
	case err != nil:
		return nil, fmt.Errorf("find the API server: %w", err)
	}
	cfg.Wrap(func(next http.RoundTripper) http.RoundTripper { return outspoken{next} })
	return cfg, nil
}
