package kubenode

import (
	"log/slog"
	"sync"

	"k8s.io/client-go/tools/cache"

	"github.com/culvert-mesh/culvert/cmd/internal/enrol"
	"github.com/culvert-mesh/culvert/workload/egress"
)

// outbound keeps the outbound policies of namespaces what their annotations say.
type outbound struct {
	modes      *egress.Modes // nil: nobody wants to know
	namespaces cache.Store
	log        *slog.Logger

	mu sync.Mutex // looking and telling are one step, or an older look could be told last
}

// follow looks at one namespace. The error says what is wrong with its annotation; it is in force as REGISTRY_ONLY then.
func (o *outbound) follow(name string) error {
	if o.modes == nil {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	obj, exists, err := o.namespaces.GetByKey(name)
	n, ok := obj.(*namespace)
	if err != nil || !exists || !ok {
		o.modes.Clear(name) // with the last of its pods
		return nil
	}
	text, asked := n.Annotations[enrol.AnnotationOutbound]
	if !asked {
		if o.modes.Clear(name) {
			o.log.Info("namespace has the mesh's outbound traffic policy again", "namespace", name, "policy", o.modes.Of(name).String())
		}
		return nil
	}
	mode, err := egress.ParseMode(text)
	if !o.modes.Set(name, mode) {
		return err
	}
	if err != nil {
		o.log.Warn("namespace's outbound traffic policy cannot be read", "namespace", name, "error", err, "policy", mode.String())
	} else {
		o.log.Info("namespace has an outbound traffic policy of its own", "namespace", name, "policy", mode.String())
	}
	return err
}
