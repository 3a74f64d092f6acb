# Culvert: build, test, measure. `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
REVISION ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
LDFLAGS  := -s -w -X main.version=$(VERSION) -X main.revision=$(REVISION)

PROGRAMS := $(notdir $(wildcard cmd/culvert*))
CRDS     := deploy/crds/.stamp
FUZZTIME ?= 10s
ROUNDS   ?= 3
SOAKTIME ?= 10m
TESTFLAGS ?=

export PATH := $(PATH):/usr/sbin:/sbin

.PHONY: help build test hostile netlab fuzz bench bench-scale bench-fair bench-hostile soak lint generate verify image bookstore-image demo interop deps clean
.PHONY: cluster cluster-down e2e

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 17

# Without grpcnotrace gRPC links html/template, which looks methods up by name: then the linker has to keep every method of
# every type (the agent: 30 instead of 24 MB, 4 MiB more of them in memory).
build: $(CRDS) ## static binaries in bin/
	@mkdir -p bin
	CGO_ENABLED=0 go build -trimpath -tags grpcnotrace -ldflags '$(LDFLAGS)' -o bin/ $(addprefix ./cmd/,$(PROGRAMS))

deps: ## install (as root) or name the Debian packages that tests and benchmarks call
	@tools/deps.sh

# Tests of hostile peers have bounds on time; beside others they would measure the machine, so they run alone, and SLOWNESS
# widens the bounds. A factor of 1 is for a machine that does nothing else (`make hostile`).
SLOWNESS ?= 4
test: deps build ## all tests with the race detector; as root they include the two-node lab
	go test -race -shuffle=on -timeout 20m $(TESTFLAGS) $$(go list ./... | grep -v -e /hbone/proxy$$ -e /e2e/cluster$$)
	CULVERT_TEST_SLOWNESS=$(SLOWNESS) go test -race -shuffle=on -timeout 20m $(TESTFLAGS) ./hbone/proxy
	cd e2e/netpol && go test -race -shuffle=on $(TESTFLAGS) ./...

hostile: ## hostile peers beside well-behaved ones, with bounds on time: on a machine that does nothing else
	go test -race -shuffle=on -timeout 20m -p 1 -run '^TestHostile' $(TESTFLAGS) ./hbone/proxy

netlab: deps build ## only the two-node lab of network namespaces
	go test -race -shuffle=on -count=1 -timeout 20m $(TESTFLAGS) ./e2e/netlab/...

# A real Kubernetes of two nodes on this machine, from packages and modules alone; as root. CLUSTER is where it lives.
CLUSTER ?= bin/cluster
KUBERNETES := kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl
KUBEVERSION = $(shell cd e2e/cluster/kubernetes && go list -m -f '{{.Version}}' k8s.io/kubernetes)
KUBEFLAGS = -s -w -X k8s.io/component-base/version.gitVersion=$(KUBEVERSION) -X k8s.io/component-base/version.gitMajor=1 \
	-X k8s.io/component-base/version.gitMinor=$(word 2,$(subst ., ,$(KUBEVERSION))) -X k8s.io/component-base/version.gitTreeState=clean

cluster: bin/culvert-cluster bin/kubernetes/built ## start (or find running) a two-node Kubernetes on this machine; prints its KUBECONFIG
	@tools/deps.sh cluster
	bin/culvert-cluster --dir=$(CLUSTER) up

cluster-down: bin/culvert-cluster ## end the cluster; nothing of it stays
	bin/culvert-cluster --dir=$(CLUSTER) down

# In the cluster of `make cluster`, or in the one of KUBECONFIG, which must have the images then. It is installed and
# uninstalled there.
e2e: build bin/culvert-cluster $(if $(KUBECONFIG),,bin/spire/built) ## all tests in a real Kubernetes: that of make cluster, or KUBECONFIG's
	@mkdir -p bin/e2e
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o bin/e2e/ ./e2e/cluster/testapp ./deploy/samples/bookstore
	cd e2e/netpol && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o $(CURDIR)/bin/e2e/netpol-oracle .
	go run ./deploy/image -out bin/e2e/culvert-image.tar -version e2e $(addprefix bin/,$(PROGRAMS))
	go test -count=1 -timeout 40m -v $(TESTFLAGS) ./e2e/cluster -args $(if $(KUBECONFIG),-kubeconfig=$(abspath $(KUBECONFIG)),-cluster=$(abspath $(CLUSTER))) -bin=$(abspath bin) $(E2EFLAGS)

.PHONY: bin/culvert-cluster
bin/culvert-cluster:
	CGO_ENABLED=0 go build -trimpath -o $@ ./e2e/cluster/cmd/culvert-cluster

bin/kubernetes/built: $(wildcard e2e/cluster/kubernetes/go.* e2e/cluster/kubernetes/dns/*.go e2e/cluster/pause/*.go)
	@mkdir -p bin/kubernetes
	@echo "building Kubernetes $(KUBEVERSION) (some minutes, once)"
	cd e2e/cluster/kubernetes && CGO_ENABLED=0 go build -trimpath -ldflags '$(KUBEFLAGS)' -o $(CURDIR)/bin/kubernetes/ $(addprefix k8s.io/kubernetes/cmd/,$(KUBERNETES)) ./dns
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o bin/kubernetes/ ./e2e/cluster/pause
	@touch $@

bin/spire/built: $(wildcard e2e/cluster/spire/*)
	@echo "building SPIRE (a minute or two, once)"
	e2e/cluster/spire/build.sh bin/spire
	@touch $@

fuzz: ## every fuzz target for FUZZTIME (default 10s)
	tools/fuzz.sh $(FUZZTIME)

bench: deps build ## direct, HAProxy pair and Culvert side by side; writes bench.json
	CGO_ENABLED=0 go build -trimpath -o bin/culvert-bench ./e2e/bench
	bin/culvert-bench --rounds=$(ROUNDS) --json=bench.json $(BENCHFLAGS)

bench-scale: deps build ## a pair of agents where it is full: held connections, 2,000 tunnels, no descriptors left, unequal neighbours; writes bench-scale.json
	CGO_ENABLED=0 go build -trimpath -o bin/culvert-bench ./e2e/bench
	bin/culvert-bench scale --rounds=$(ROUNDS) --json=bench-scale.json $(SCALEFLAGS)

bench-fair: deps build ## only what unequal neighbours do to each other: a stalled stream, bulk, requests, floods
	CGO_ENABLED=0 go build -trimpath -o bin/culvert-bench ./e2e/bench
	bin/culvert-bench scale --parts=fair,flood --rounds=$(ROUNDS) --json= $(SCALEFLAGS)

bench-hostile: deps build ## what a hostile peer does to the slowest answers of a neighbour, one way to attack after the other
	CGO_ENABLED=0 go build -trimpath -o bin/culvert-bench ./e2e/bench
	bin/culvert-bench scale --parts=hostile --duration=2s --rounds=$(ROUNDS) --json= $(SCALEFLAGS)

soak: build ## four agents under load, kills, flaps, rotations and changes for SOAKTIME (default 10m); every byte is counted
	CGO_ENABLED=0 go build -trimpath -o bin/culvert-soak ./e2e/soak
	bin/culvert-soak --time=$(SOAKTIME) $(SOAKFLAGS)

lint: bin/tools/golangci-lint ## golangci-lint, built on first use from tools/go.mod
	bin/tools/golangci-lint run ./...

bin/tools/golangci-lint: tools/go.mod tools/go.sum
	@mkdir -p bin/tools
	@echo "building golangci-lint (a minute or two, once)"
	cd tools && CGO_ENABLED=0 go build -o ../bin/tools/golangci-lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint

generate: ## everything that is generated: custom resource definitions (not kept in git), rendered manifests
	go generate ./...

# The programs embed the definitions; git does not keep them.
$(CRDS): go.mod $(wildcard deploy/gen/*.go)
	go run ./deploy/gen -crds -dir deploy
	@touch $@

verify: ## what must be clean before a change lands: format, vet, tidy, generated files, import and house rules
	tools/verify.sh

image: build ## container image with all programs: bin/culvert-image.tar (OCI layout that docker load takes too) and its SBOM
	go run ./deploy/image -out bin/culvert-image.tar -version '$(VERSION)' $(addprefix bin/,$(PROGRAMS))

bookstore-image: ## image of the sample application in deploy/samples/bookstore: bin/bookstore-image.tar
	@mkdir -p bin/samples
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o bin/samples/ ./deploy/samples/bookstore
	go run ./deploy/image -out bin/bookstore-image.tar -name culvert-bookstore -version v1 bin/samples/bookstore

demo: build ## two nodes, four pods, real traffic, on this machine, in a minute
	bin/culvert demo $(DEMOFLAGS)

interop: deps build ## the lab with another implementation at either end: make interop PEER=path-to-a-ztunnel-binary
	CULVERT_INTEROP_PEER='$(PEER)' go test -count=1 -v -timeout 20m -run Interop $(TESTFLAGS) ./e2e/netlab/...

clean: ## remove what was built
	rm -rf bin bench.json bench-scale.json
