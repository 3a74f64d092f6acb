package spire_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/culvert-mesh/culvert/identity"
	"github.com/culvert-mesh/culvert/identity/identitytest"
	"github.com/culvert-mesh/culvert/identity/manager"
	"github.com/culvert-mesh/culvert/identity/spire"
	"github.com/culvert-mesh/culvert/identity/svid"
)

func newDelegated(t *testing.T, address string) (*spire.Delegated, *logBuffer) {
	t.Helper()
	log := &logBuffer{}
	d, err := spire.NewDelegated(spire.DelegatedConfig{Address: address, Logger: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	run(t, d.Run)
	return d, log
}

func webPod(uid string) spire.Workload {
	return spire.Workload{UID: uid, Namespace: "default", ServiceAccount: "web", Name: "web-" + uid}
}

func entry(s *svid.SVID, selectors ...string) identitytest.Entry {
	return identitytest.Entry{Selectors: selectors, SVID: s}
}

// soon is long enough for everything that is going to happen.
func soon(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestDelegatedFetch(t *testing.T) {
	ca := identitytest.NewCA(t, "td")
	low := ca.Intermediate(t)
	api := identitytest.NewDelegatedIdentity(t)
	api.SetRoots(ca.Bundle(), identitytest.NewCA(t, "other").Bundle())
	byUID, byAccount := low.SVID(t, webID), ca.SVID(t, apiID)
	api.SetEntries(
		entry(byUID, "k8s:pod-uid:1"),
		entry(byAccount, "k8s:ns:default", "k8s:sa:api"),
		entry(ca.SVID(t, webID), "k8s:pod-uid:9"),
	)
	d, _ := newDelegated(t, api.Address)
	if _, err := d.Fetch(soon(t), web); err == nil || !strings.HasSuffix(err.Error(), "no workload of this node has it") {
		t.Errorf("nobody has entered: %v", err)
	}
	d.Enter(webPod("1"))
	d.Enter(spire.Workload{UID: "2", Namespace: "default", ServiceAccount: "api"})
	got, err := d.Fetch(soon(t), web)
	if err != nil {
		t.Fatal(err)
	}
	if got.ID != web || !got.Leaf().Equal(byUID.Leaf()) || len(got.Certificates) != 2 || !got.Bundle.Equal(ca.Bundle()) {
		t.Errorf("got %s with %d certificates", got.ID, len(got.Certificates))
	}
	if err := got.Verify(time.Now()); err != nil {
		t.Error(err)
	}
	if got, err := d.Fetch(soon(t), identity.MustParse(apiID)); err != nil || !got.Leaf().Equal(byAccount.Leaf()) {
		t.Errorf("by account: %v", err)
	}
	d.Leave(webPod("1"))
	if _, err := d.Fetch(soon(t), web); err == nil {
		t.Error("an identity is left when the last pod has gone")
	}
	eventually(t, "stream ended", func() bool { return api.Streams() == 2 }) // roots and the other workload
}

// TestDelegatedGrantsOthers has SPIRE grant a pod what is not its service account.
func TestDelegatedGrantsOthers(t *testing.T) {
	ca := identitytest.NewCA(t, "td")
	api := identitytest.NewDelegatedIdentity(t)
	api.SetRoots(ca.Bundle())
	api.SetEntries(entry(ca.SVID(t, apiID), "k8s:pod-uid:1"))
	d, log := newDelegated(t, api.Address)
	d.Enter(webPod("1"))
	if _, err := d.Fetch(soon(t), web); err == nil || !strings.HasSuffix(err.Error(), "it grants no identity of a service account") {
		t.Errorf("got %v", err)
	}
	if _, err := d.Fetch(soon(t), identity.MustParse(apiID)); err == nil {
		t.Error("an identity of a pod that is not here")
	}
	if !strings.Contains(log.String(), "is not the pod's service account, default/web") {
		t.Errorf("log: %s", log.String())
	}
	other := identity.MustParse("spiffe://elsewhere/ns/default/sa/web")
	api.SetEntries(entry(ca.SVID(t, webID), "k8s:pod-uid:1"))
	eventually(t, "granted", func() bool { _, err := d.Fetch(soon(t), web); return err == nil })
	if _, err := d.Fetch(soon(t), other); err == nil || !strings.HasSuffix(err.Error(), "it grants "+webID+" only") {
		t.Errorf("of another trust domain: %v", err)
	}
}

// TestDelegatedPushes follows renewals, new roots and entries that come late.
func TestDelegatedPushes(t *testing.T) {
	old, young := identitytest.NewCA(t, "td"), identitytest.NewCA(t, "td")
	api := identitytest.NewDelegatedIdentity(t)
	api.SetRoots(old.Bundle())
	d, _ := newDelegated(t, api.Address)
	var mu sync.Mutex
	var last *svid.SVID
	cancel := d.Subscribe(func(s *svid.SVID) {
		mu.Lock()
		defer mu.Unlock()
		last = s
	})
	pushed := func() *svid.SVID {
		mu.Lock()
		defer mu.Unlock()
		return last
	}
	d.Enter(webPod("1"))
	d.Enter(webPod("2"))
	if _, err := d.Fetch(soon(t), web); err == nil {
		t.Error("granted before there is an entry")
	}
	first := old.SVID(t, webID)
	api.SetEntries(entry(first, "k8s:pod-uid:1"))
	eventually(t, "late entry", func() bool { s := pushed(); return s != nil && s.Leaf().Equal(first.Leaf()) })

	both := identity.NewBundle(identity.MustTrustDomain("td"), append(old.Bundle().Certificates(), young.Certificate))
	api.SetRoots(both)
	eventually(t, "new roots", func() bool { return pushed().Bundle.Equal(both) })
	second := young.SVID(t, webID)
	api.SetEntries(entry(second, "k8s:pod-uid:2"))
	eventually(t, "renewal", func() bool { s := pushed(); return s.Leaf().Equal(second.Leaf()) })
	// The first pod's entry is gone; the second still has the identity.
	d.Leave(webPod("1"))
	if s, err := d.Fetch(soon(t), web); err != nil || !s.Leaf().Equal(second.Leaf()) {
		t.Errorf("got %v", err)
	}
	cancel()
}

// TestDelegatedReEntered has a pod leave and come back before anybody looks.
func TestDelegatedReEntered(t *testing.T) {
	ca := identitytest.NewCA(t, "td")
	api := identitytest.NewDelegatedIdentity(t)
	api.SetRoots(ca.Bundle())
	api.SetEntries(entry(ca.SVID(t, webID), "k8s:pod-uid:1"))
	d, _ := newDelegated(t, api.Address)
	d.Enter(webPod("1"))
	for range 20 {
		d.Leave(webPod("1"))
		d.Leave(webPod("1")) // once too often
		d.Enter(webPod("1"))
		if _, err := d.Fetch(soon(t), web); err != nil {
			t.Fatal(err)
		}
	}
	d.Enter(webPod("1"))
	d.Leave(webPod("1"))
	if _, err := d.Fetch(soon(t), web); err != nil {
		t.Errorf("held twice, left once: %v", err)
	}
	eventually(t, "old streams ended", func() bool { return api.Streams() == 2 })
}

func TestDelegatedRefused(t *testing.T) {
	ca := identitytest.NewCA(t, "td")
	api := identitytest.NewDelegatedIdentity(t)
	api.Refuse(status.Error(codes.PermissionDenied, "caller not configured as an authorized delegate"))
	d, log := newDelegated(t, api.Address)
	d.Enter(webPod("1"))
	_, err := d.Fetch(soon(t), web)
	if err == nil || !strings.HasSuffix(err.Error(), "PermissionDenied: caller not configured as an authorized delegate") {
		t.Errorf("got %v", err)
	}
	eventually(t, "in the log", func() bool { return strings.Contains(log.String(), "authorized delegate") })
	api.SetRoots(ca.Bundle())
	api.SetEntries(entry(ca.SVID(t, webID), "k8s:pod-uid:1"))
	api.Refuse(nil)
	eventually(t, "granted", func() bool { _, err := d.Fetch(soon(t), web); return err == nil })
	eventually(t, "said so", func() bool { return strings.Contains(log.String(), "answers again") })
}

// TestDelegatedAway keeps what is known while SPIRE restarts.
func TestDelegatedAway(t *testing.T) {
	ca := identitytest.NewCA(t, "td")
	api := identitytest.NewDelegatedIdentity(t)
	api.SetRoots(ca.Bundle())
	api.SetEntries(entry(ca.SVID(t, webID), "k8s:pod-uid:1"))
	d, _ := newDelegated(t, api.Address)
	d.Enter(webPod("1"))
	first, err := d.Fetch(soon(t), web)
	if err != nil {
		t.Fatal(err)
	}
	api.Stop()
	d.Enter(spire.Workload{UID: "2", Namespace: "default", ServiceAccount: "api"})
	if _, err := d.Fetch(soon(t), identity.MustParse(apiID)); err == nil || !strings.Contains(err.Error(), "Unavailable") {
		t.Errorf("a newcomer: %v", err)
	}
	if s, err := d.Fetch(soon(t), web); err != nil || !s.Leaf().Equal(first.Leaf()) {
		t.Errorf("what was known: %v", err)
	}
	renewed := ca.SVID(t, webID)
	api.SetEntries(entry(renewed, "k8s:pod-uid:1"))
	api.Start()
	eventually(t, "renewed", func() bool {
		s, err := d.Fetch(soon(t), web)
		return err == nil && s.Leaf().Equal(renewed.Leaf())
	})
}

// TestDelegatedRoots has roots come late, and damaged ones of others.
func TestDelegatedRoots(t *testing.T) {
	ca := identitytest.NewCA(t, "td")
	api := identitytest.NewDelegatedIdentity(t)
	api.SetEntries(entry(ca.SVID(t, webID), "k8s:pod-uid:1"))
	d, log := newDelegated(t, api.Address)
	d.Enter(webPod("1"))
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := d.Fetch(short, web); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without roots: %v", err)
	}
	api.SetRawRoots(map[string][]byte{"td": ca.Certificate.Raw, "spiffe://broken": []byte("hello"), "Not A Name": ca.Certificate.Raw})
	got, err := d.Fetch(soon(t), web)
	if err != nil || !got.Bundle.Equal(ca.Bundle()) {
		t.Errorf("with roots: %v", err)
	}
	if text := log.String(); !strings.Contains(text, "trustDomain=spiffe://broken") || !strings.Contains(text, `trustDomain="Not A Name"`) {
		t.Errorf("log: %s", text)
	}
}

// TestDelegatedUnderManager is how the agent uses it.
func TestDelegatedUnderManager(t *testing.T) {
	ca := identitytest.NewCA(t, "td")
	api := identitytest.NewDelegatedIdentity(t)
	api.SetRoots(ca.Bundle())
	d, _ := newDelegated(t, api.Address)
	m, err := manager.New(manager.Config{Source: d})
	if err != nil {
		t.Fatal(err)
	}
	run(t, m.Run)
	d.Enter(webPod("1"))
	m.Acquire(web)
	if _, err := m.Get(soon(t), web); err == nil {
		t.Error("granted before there is an entry")
	}
	api.SetEntries(entry(ca.SVID(t, webID), "k8s:pod-uid:1"))
	eventually(t, "granted", func() bool { _, err := m.Get(soon(t), web); return err == nil })
	renewed := ca.SVID(t, webID)
	api.SetEntries(entry(renewed, "k8s:pod-uid:1"))
	eventually(t, "renewed", func() bool {
		s, err := m.Get(soon(t), web)
		return err == nil && s.Leaf().Equal(renewed.Leaf())
	})
}

// TestDelegatedKeysStayInside looks for key material in what is logged.
func TestDelegatedKeysStayInside(t *testing.T) {
	ca := identitytest.NewCA(t, "td")
	s := ca.SVID(t, webID)
	mixed := *s
	mixed.PrivateKey = ca.SVID(t, webID).PrivateKey // not the certificate's
	api := identitytest.NewDelegatedIdentity(t)
	api.SetRoots(ca.Bundle())
	api.SetEntries(entry(&mixed, "k8s:pod-uid:1"))
	d, log := newDelegated(t, api.Address)
	d.Enter(webPod("1"))
	if _, err := d.Fetch(soon(t), web); err == nil {
		t.Error("a key that is not the certificate's is accepted")
	}
	if text := log.String(); !strings.Contains(text, "private key does not match") || bytes.Contains([]byte(text), []byte("PRIVATE")) {
		t.Errorf("log: %s", text)
	}
}

func TestNewDelegatedRefuses(t *testing.T) {
	for _, address := range []string{"", "/run/spire/admin.sock", "unix:relative", "unix://host/path", "tcp://127.0.0.1:8081", "unix://", "http://x"} {
		if _, err := spire.NewDelegated(spire.DelegatedConfig{Address: address}); err == nil {
			t.Errorf("%q: accepted", address)
		}
	}
}
