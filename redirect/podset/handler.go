package podset

import (
	"context"

	"github.com/culvert-mesh/culvert/redirect/handoff"
	"github.com/culvert-mesh/culvert/redirect/netns"
)

// Handoff returns the Set as the handler of a handoff.Server.
func (s *Set) Handoff() handoff.Handler { return handler{s} }

type handler struct {
	set *Set
}

func (h handler) Add(ctx context.Context, p handoff.Pod, ns *netns.NS) error {
	return h.set.Add(ctx, Pod{UID: p.UID, Name: p.Name, Namespace: p.Namespace, ServiceAccount: p.ServiceAccount, NS: ns})
}

func (h handler) Remove(ctx context.Context, uid string) error { return h.set.Remove(ctx, uid) }

func (h handler) List() []handoff.Status {
	var out []handoff.Status
	for _, st := range h.set.Pods() {
		s := handoff.Status{
			Pod: handoff.Pod{
				UID: st.Pod.UID, Name: st.Pod.Name, Namespace: st.Pod.Namespace, ServiceAccount: st.Pod.ServiceAccount,
			},
			State: string(st.State), NetNS: st.NetNS.Inode(),
		}
		if st.Err != nil {
			s.Error = st.Err.Error()
		}
		out = append(out, s)
	}
	return out
}
