package spire

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	delegated "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/delegatedidentity/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/svid"
)

// A stream that has failed is opened again after pauses that double. SPIRE attests its caller for each stream, which can cost
// it a digest of the caller's program, so that the streams of a hundred pods wait long between attempts, and the one of the
// roots asks often on behalf of all: it is refused for the same reasons, and once it is answered they try at once.
const (
	firstPause = 500 * time.Millisecond
	maxProbe   = 5 * time.Second // SPIRE's agent asks its server for entries as often
	maxPause   = 30 * time.Second
)

// follower opens a stream and follows it until it breaks. It calls good at each
// answer.
type follower func(ctx context.Context, good func()) error

// repeat opens a stream again and again until ctx ends, with pauses of longest at most.
func (d *Delegated) repeat(ctx context.Context, what string, longest time.Duration, follow follower) {
	pause, told := firstPause, ""
	good := func() {
		if pause = firstPause; told != "" {
			d.logger.Info("Delegated Identity API answers again", "address", d.address, "stream", what)
			told = ""
		}
	}
	for {
		answers := d.answering()
		err := follow(ctx, good)
		if ctx.Err() != nil {
			return
		}
		if text := err.Error(); text != told {
			d.logger.Warn("Delegated Identity API fails", "address", d.address, "stream", what, "error", err)
			told = text
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
			pause = min(2*pause, longest)
		case <-answers:
			timer.Stop()
			pause = firstPause
		}
	}
}

// answering is closed when roots come after they did not.
func (d *Delegated) answering() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.answers
}

// streamError shortens what ended a stream.
func streamError(err error) error {
	if errors.Is(err, io.EOF) {
		return errors.New("the stream was ended")
	}
	if st, ok := status.FromError(err); ok && st.Code() != codes.OK {
		return fmt.Errorf("%s: %s", st.Code(), st.Message())
	}
	return err
}

// followBundles keeps the roots of all trust domains.
func (d *Delegated) followBundles(client delegated.DelegatedIdentityClient) follower {
	return func(ctx context.Context, good func()) error {
		stream, err := client.SubscribeToX509Bundles(ctx, &delegated.SubscribeToX509BundlesRequest{})
		for err == nil {
			var answer *delegated.SubscribeToX509BundlesResponse
			if answer, err = stream.Recv(); err == nil {
				good()
				d.takeBundles(d.readBundles(answer))
			}
		}
		err = streamError(err)
		d.mu.Lock()
		defer d.mu.Unlock()
		d.bundleErr = err
		d.announceLocked()
		return err
	}
}

// readBundles leaves out what it cannot read: the other trust domains are not
// to suffer from it.
func (d *Delegated) readBundles(answer *delegated.SubscribeToX509BundlesResponse) map[identity.TrustDomain]*identity.Bundle {
	bundles := make(map[identity.TrustDomain]*identity.Bundle)
	for name, der := range answer.GetCaCertificates() {
		td, err := trustDomainOf(name)
		if err != nil {
			d.logger.Warn("roots from the Delegated Identity API not used", "trustDomain", name, "error", err)
			continue
		}
		certs, err := x509.ParseCertificates(der)
		if err != nil {
			d.logger.Warn("roots from the Delegated Identity API not used", "trustDomain", name, "error", err)
			continue
		}
		bundles[td] = identity.NewBundle(td, certs)
	}
	return bundles
}

// trustDomainOf takes the name with or without a scheme: the API says "name",
// and SPIRE sends the trust domain's SPIFFE ID.
func trustDomainOf(name string) (identity.TrustDomain, error) {
	const scheme = "spiffe://"
	if len(name) > len(scheme) && name[:len(scheme)] == scheme {
		name = name[len(scheme):]
	}
	return identity.ParseTrustDomain(name)
}

// document is one SVID as it came, without roots.
type document struct {
	id    identity.ID
	chain []*x509.Certificate
	key   crypto.Signer
}

// followWorkload keeps the SVIDs of one workload.
func (d *Delegated) followWorkload(client delegated.DelegatedIdentityClient, g *granted) follower {
	request := &delegated.SubscribeToX509SVIDsRequest{}
	for _, value := range g.workload.selectors() {
		request.Selectors = append(request.Selectors, &types.Selector{Type: "k8s", Value: value})
	}
	return func(ctx context.Context, good func()) error {
		stream, err := client.SubscribeToX509SVIDs(ctx, request)
		for err == nil {
			var answer *delegated.SubscribeToX509SVIDsResponse
			if answer, err = stream.Recv(); err == nil {
				good()
				d.takeDocuments(g, d.readDocuments(g.workload, answer))
			}
		}
		err = streamError(err)
		d.mu.Lock()
		defer d.mu.Unlock()
		g.err = err
		d.announceLocked()
		return err
	}
}

// readDocuments keeps the SVIDs that are for the workload's service account.
// Whatever else SPIRE grants a pod, it is not that identity.
func (d *Delegated) readDocuments(w Workload, answer *delegated.SubscribeToX509SVIDsResponse) []document {
	var documents []document
	for _, one := range answer.GetX509Svids() {
		doc, err := readDocument(w, one)
		if err != nil {
			d.logger.Warn("SVID from the Delegated Identity API not used", "id", one.GetX509Svid().GetId().GetPath(), "pod", w.Namespace+"/"+w.Name, "error", err)
			continue
		}
		documents = append(documents, doc)
	}
	return documents
}

func readDocument(w Workload, in *delegated.X509SVIDWithKey) (document, error) {
	var doc document
	for _, der := range in.GetX509Svid().GetCertChain() {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return document{}, err
		}
		doc.chain = append(doc.chain, cert)
	}
	if len(doc.chain) == 0 {
		return document{}, errors.New("no certificate")
	}
	var err error
	if doc.id, err = svid.IDFromCert(doc.chain[0]); err != nil {
		return document{}, err
	}
	if doc.id.Namespace() != w.Namespace || doc.id.ServiceAccount() != w.ServiceAccount {
		return document{}, fmt.Errorf("%s is not the pod's service account, %s/%s", doc.id, w.Namespace, w.ServiceAccount)
	}
	key, err := x509.ParsePKCS8PrivateKey(in.GetX509SvidKey())
	if err != nil {
		return document{}, errors.New("the private key cannot be read") // not a word about it
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return document{}, errors.New("the private key cannot sign")
	}
	doc.key = signer
	return doc, nil
}

// takeBundles replaces all roots, and the SVIDs with them.
func (d *Delegated) takeBundles(bundles map[identity.TrustDomain]*identity.Bundle) {
	d.pushing.Lock()
	defer d.pushing.Unlock()
	d.mu.Lock()
	same := maps.EqualFunc(d.bundles, bundles, (*identity.Bundle).Equal) && d.bundleErr == nil
	if d.bundleErr != nil {
		close(d.answers)
		d.answers = make(chan struct{})
	}
	d.bundles, d.bundleErr = bundles, nil
	var all []*svid.SVID
	if !same {
		for _, g := range d.workloads {
			all = append(all, d.completeLocked(g)...)
		}
	}
	// After an outage the roots can come before the SVIDs that replace those of before.
	now := time.Now()
	all = slices.DeleteFunc(all, func(s *svid.SVID) bool { return s.Expired(now) })
	d.announceLocked()
	subs := slices.Collect(maps.Values(d.subs))
	d.mu.Unlock()
	push(subs, all)
}

// takeDocuments replaces the SVIDs of one workload.
func (d *Delegated) takeDocuments(g *granted, documents []document) {
	d.pushing.Lock()
	defer d.pushing.Unlock()
	d.mu.Lock()
	if d.workloads[g.workload] != g {
		d.mu.Unlock()
		return // it has left
	}
	g.synced, g.err, g.documents = true, nil, documents
	all := d.completeLocked(g)
	d.announceLocked()
	subs := slices.Collect(maps.Values(d.subs))
	d.mu.Unlock()
	push(subs, all)
}

// completeLocked joins documents and roots. Without roots of its trust domain a
// document waits for them.
func (d *Delegated) completeLocked(g *granted) []*svid.SVID {
	g.svids = make(map[identity.ID]*svid.SVID, len(g.documents))
	var all []*svid.SVID
	for _, doc := range g.documents {
		bundle := d.bundles[doc.id.TrustDomain()]
		if bundle == nil {
			continue
		}
		s, err := svid.New(doc.chain, doc.key, bundle)
		if err != nil {
			d.logger.Warn("SVID from the Delegated Identity API not used", "id", doc.id.String(), "error", err)
			continue
		}
		if old := g.svids[doc.id]; old != nil && old.NotAfter().After(s.NotAfter()) {
			continue
		}
		g.svids[doc.id] = s
		all = append(all, s)
	}
	return all
}

func push(subs []func(*svid.SVID), all []*svid.SVID) {
	for _, s := range all {
		for _, fn := range subs {
			fn(s)
		}
	}
}
