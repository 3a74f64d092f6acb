// Package egress knows the outbound traffic policy of the mesh and of its
// namespaces: whether pods may connect to destinations that the registry does
// not have.
//
// Which destinations those are is package route's to say, and whoever reads
// annotations brings what namespaces ask for.
//
// Modes may be used by any number of goroutines at a time. Reading takes no
// lock.
package egress

import (
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
)

// Mode is what becomes of connections to destinations that the registry does
// not have.
type Mode uint8

const (
	// AllowAny lets them pass through, plainly, to where they were going.
	AllowAny Mode = iota
	// RegistryOnly refuses them.
	RegistryOnly
)

// String returns the word that users write, which is Istio's.
func (m Mode) String() string {
	if m == AllowAny {
		return "ALLOW_ANY"
	}
	return "REGISTRY_ONLY"
}

// maxShown bounds how much of a wrong value an error repeats.
const maxShown = 40

// ParseMode reads the word that users write. With any other text it returns an
// error, and RegistryOnly for whoever has to go on: in doubt nothing gets out.
func ParseMode(text string) (Mode, error) {
	switch text {
	case AllowAny.String():
		return AllowAny, nil
	case RegistryOnly.String():
		return RegistryOnly, nil
	}
	return RegistryOnly, fmt.Errorf("outbound traffic policy %.*q is neither %s nor %s", maxShown, text, AllowAny, RegistryOnly)
}

// Modes holds the mode of the mesh and those of namespaces that have one of
// their own. A nil *Modes is ALLOW_ANY everywhere, for good.
type Modes struct {
	mesh Mode

	mu  sync.Mutex // for writers
	now atomic.Pointer[modes]
}

// modes is one state, which never changes.
type modes struct {
	own     map[string]Mode
	changed chan struct{}
}

// New returns Modes in which no namespace has one of its own.
func New(mesh Mode) *Modes {
	m := &Modes{mesh: mesh}
	m.now.Store(&modes{changed: make(chan struct{})})
	return m
}

// Of returns the mode of the namespace: its own, else that of the mesh.
func (m *Modes) Of(namespace string) Mode {
	if m == nil {
		return AllowAny
	}
	if own, ok := m.now.Load().own[namespace]; ok {
		return own
	}
	return m.mesh
}

// All returns the mode of the mesh, and those of namespaces that have one of
// their own, which are the caller's.
func (m *Modes) All() (mesh Mode, own map[string]Mode) {
	if m == nil {
		return AllowAny, nil
	}
	return m.mesh, maps.Clone(m.now.Load().own)
}

// Changed returns a channel that is closed at the next change. Take it before
// reading what may have changed. It is nil, and so never ready, for nil Modes.
func (m *Modes) Changed() <-chan struct{} {
	if m == nil {
		return nil
	}
	return m.now.Load().changed
}

// Set gives the namespace a mode of its own. It reports whether that is a
// change.
func (m *Modes) Set(namespace string, mode Mode) bool {
	return m.change(func(own map[string]Mode) bool {
		old, had := own[namespace]
		own[namespace] = mode
		return !had || old != mode
	})
}

// Clear makes the namespace follow the mesh. It reports whether that is a
// change.
func (m *Modes) Clear(namespace string) bool {
	return m.change(func(own map[string]Mode) bool {
		_, had := own[namespace]
		delete(own, namespace)
		return had
	})
}

func (m *Modes) change(edit func(map[string]Mode) bool) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	last := m.now.Load()
	own := maps.Clone(last.own)
	if own == nil {
		own = make(map[string]Mode)
	}
	if !edit(own) {
		return false
	}
	m.now.Store(&modes{own: own, changed: make(chan struct{})})
	close(last.changed)
	return true
}
