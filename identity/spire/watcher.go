package spire

import (
	"context"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/svid"
)

// watcher turns what go-spiffe delivers into our own types. go-spiffe calls it
// from one goroutine.
type watcher struct {
	source *Source
}

var _ workloadapi.X509ContextWatcher = (*watcher)(nil)

// OnX509ContextUpdate takes over an answer. SVIDs whose IDs are not those of a
// service account are left out.
func (w *watcher) OnX509ContextUpdate(update *workloadapi.X509Context) {
	var all []*svid.SVID
	for _, one := range update.SVIDs {
		s, err := convert(one, update)
		if err != nil {
			w.source.logger.Warn("SVID from the Workload API not used", "id", one.ID.String(), "error", err)
			continue
		}
		all = append(all, s)
	}
	w.source.update(all)
}

// OnX509ContextWatchError notes a failure of the watch; the end of our own
// context is none.
func (w *watcher) OnX509ContextWatchError(err error) {
	if errors.Is(err, context.Canceled) || status.Code(err) == codes.Canceled {
		return
	}
	w.source.fail(err)
}

func convert(one *x509svid.SVID, update *workloadapi.X509Context) (*svid.SVID, error) {
	td, err := identity.ParseTrustDomain(one.ID.TrustDomain().Name())
	if err != nil {
		return nil, err
	}
	roots, err := update.Bundles.GetX509BundleForTrustDomain(one.ID.TrustDomain())
	if err != nil {
		return nil, fmt.Errorf("no roots: %w", err)
	}
	return svid.New(one.Certificates, one.PrivateKey, identity.NewBundle(td, roots.X509Authorities()))
}
