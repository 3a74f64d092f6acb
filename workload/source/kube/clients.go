package kube

import (
	"fmt"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
)

// Clients are the ways to the API server that a Source uses. All are required.
type Clients struct {
	// Core reads the built-in kinds.
	Core kubernetes.Interface
	// Dynamic reads the kinds that are defined by custom resources: one that
	// cannot be decoded then spoils itself only, and not its whole list.
	Dynamic dynamic.Interface
	// Metadata tells which custom resources are defined.
	Metadata metadata.Interface
}

func newClients(config *rest.Config) (*Clients, error) {
	typed := rest.CopyConfig(config)
	typed.ContentType = "application/vnd.kubernetes.protobuf"
	typed.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	core, err := kubernetes.NewForConfig(typed)
	if err != nil {
		return nil, fmt.Errorf("make client: %w", err)
	}
	dyn, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make dynamic client: %w", err)
	}
	meta, err := metadata.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make metadata client: %w", err)
	}
	return &Clients{Core: core, Dynamic: dyn, Metadata: meta}, nil
}
