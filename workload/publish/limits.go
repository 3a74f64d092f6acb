package publish

import (
	"fmt"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// What a request may hold. A wildcard client that comes back names every
// resource that it knows.
const (
	maxRequest = 32 << 20
	// maxKnown bounds the versions that a client may tell.
	maxKnown = 250_000
	// maxNames bounds what a client may subscribe to by name, in a request and
	// in all.
	maxNames = 20_000
	// maxOwed is how many names may wait for an answer before they are looked
	// through for doubles.
	maxOwed = 2 * maxNames
	// maxName is longer than any name: the longest is that of a workload of a
	// ServiceEntry, with the names of cluster, namespace and entry and an address.
	maxName    = 1024
	maxVersion = 64
	maxToken   = 16 << 10
	// maxLogged cuts what clients say in logs.
	maxLogged = 512
)

// checkRequest refuses what no honest client sends.
func checkRequest(r *discovery.DeltaDiscoveryRequest) error {
	if n := len(r.GetInitialResourceVersions()); n > maxKnown {
		return fmt.Errorf("versions of %d resources, limit is %d", n, maxKnown)
	}
	for name, version := range r.GetInitialResourceVersions() {
		if err := checkName(name); err != nil {
			return err
		}
		if len(version) > maxVersion {
			return fmt.Errorf("version of %d octets, limit is %d", len(version), maxVersion)
		}
	}
	for _, names := range [][]string{r.GetResourceNamesSubscribe(), r.GetResourceNamesUnsubscribe()} {
		if len(names) > maxKnown {
			return fmt.Errorf("%d names, limit is %d", len(names), maxKnown)
		}
		for _, name := range names {
			if err := checkName(name); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkName(name string) error {
	if len(name) > maxName {
		return fmt.Errorf("name of %d octets, limit is %d", len(name), maxName)
	}
	return nil
}

// cut shortens what a client says for the log.
func cut(s string) string {
	if len(s) > maxLogged {
		return s[:maxLogged] + "…"
	}
	return s
}
