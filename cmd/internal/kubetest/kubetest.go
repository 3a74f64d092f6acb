// Package kubetest is an API server in memory for tests of what writes to one. It has what client-go's fake lacks and real
// servers are about: UIDs, resource versions, conflicts and preconditions; and it counts requests and fails them when asked.
//
// A Server may be used by any goroutine.
package kubetest

import (
	"strconv"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"
)

// Always is for Fail: until it is called again.
const Always = -1

// Server is the API server. Requests are named by verb and resource, such as "update secrets".
type Server struct {
	*fake.Clientset

	mu      sync.Mutex
	version int
	counts  map[string]int
	trouble map[string]trouble
}

// trouble is what happens to requests to come.
type trouble struct {
	times int
	err   error
}

// New returns a Server without objects.
func New() *Server {
	s := &Server{Clientset: fake.NewClientset(), counts: make(map[string]int), trouble: make(map[string]trouble)}
	s.PrependReactor("*", "*", s.react)
	s.PrependWatchReactor("*", func(action k8stesting.Action) (bool, watch.Interface, error) {
		w, err := s.Tracker().Watch(action.GetResource(), action.GetNamespace())
		_, _ = s.count(action) // after it was opened: what is created before is lost in the fake
		return true, w, err
	})
	return s
}

// Fail makes so many of the next requests of a kind fail; 0 takes that back. A nil error stands for a conflict.
func (s *Server) Fail(request string, times int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trouble[request] = trouble{times, err}
}

// Count returns how many requests of a kind there were, those that failed among them. A watch counts when it is open.
func (s *Server) Count(request string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts[request]
}

// count notes a request. It returns the resource version that a write gets, and what is to become of the request.
func (s *Server) count(action k8stesting.Action) (version string, err error) {
	request := action.GetVerb() + " " + action.GetResource().Resource
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts[request]++
	s.version++
	if t := s.trouble[request]; t.times != 0 {
		if err = t.err; err == nil {
			err = apierrors.NewConflict(action.GetResource().GroupResource(), "disturbed", nil)
		}
		if t.times > 0 {
			t.times--
		}
		s.trouble[request] = t
	}
	return strconv.Itoa(s.version), err
}

// react runs under the lock of the fake, so reading and writing are one.
func (s *Server) react(action k8stesting.Action) (bool, runtime.Object, error) {
	version, err := s.count(action)
	if err != nil {
		return true, nil, err
	}
	switch a := action.(type) {
	case k8stesting.DeleteActionImpl:
		err = s.deletes(a)
	case k8stesting.UpdateActionImpl:
		err = s.updates(a, version)
	case k8stesting.CreateActionImpl:
		err = creates(a, version)
	}
	return err != nil, nil, err
}

// stored returns what the server has under a name; nil when it has nothing.
func (s *Server) stored(action k8stesting.Action, name string) metav1.Object {
	o, err := s.Tracker().Get(action.GetResource(), action.GetNamespace(), name)
	if err != nil {
		return nil
	}
	a, err := meta.Accessor(o)
	if err != nil {
		return nil
	}
	return a
}

func (s *Server) deletes(a k8stesting.DeleteActionImpl) error {
	have, want := s.stored(a, a.Name), a.DeleteOptions.Preconditions
	if have == nil || want == nil {
		return nil
	}
	if want.UID != nil && *want.UID != have.GetUID() || want.ResourceVersion != nil && *want.ResourceVersion != have.GetResourceVersion() {
		return apierrors.NewConflict(a.GetResource().GroupResource(), a.Name, nil)
	}
	return nil
}

func (s *Server) updates(a k8stesting.UpdateActionImpl, version string) error {
	o, err := meta.Accessor(a.Object)
	if err != nil {
		return err
	}
	if have := s.stored(a, o.GetName()); have != nil && have.GetResourceVersion() != o.GetResourceVersion() {
		return apierrors.NewConflict(a.GetResource().GroupResource(), o.GetName(), nil)
	}
	o.SetResourceVersion(version)
	return nil
}

func creates(a k8stesting.CreateActionImpl, version string) error {
	o, err := meta.Accessor(a.Object)
	if err != nil || o.GetName() == "" {
		return nil //nolint:nilerr // a review, which is not stored
	}
	o.SetUID(types.UID("uid-" + version))
	o.SetResourceVersion(version)
	return nil
}
