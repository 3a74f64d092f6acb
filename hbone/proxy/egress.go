package proxy

import (
	"github.com/culvert-mesh/culvert/workload"
	"github.com/culvert-mesh/culvert/workload/egress"
	"github.com/culvert-mesh/culvert/workload/route"
)

// outside is the judge of connections to destinations that are not in the registry, where the outbound policy of the
// pod's namespace asks for that.
type outside struct {
	modes   *egress.Modes
	store   *workload.Store
	network string
}

func (j *outside) concerns(d Direction) bool { return d == Outbound }

func (j *outside) changed() <-chan struct{} { return j.modes.Changed() }

func (j *outside) sit(p *Pod, local *localState) (basis any, look func(*Flow) error) {
	modes := j.modes.Changed() // before they are read
	if j.modes.Of(p.cfg.Namespace) != egress.RegistryOnly {
		return egress.AllowAny, func(*Flow) error { return nil }
	}
	snap := j.store.Snapshot()
	return outsideBasis{snap.Version(), modes}, func(f *Flow) error {
		if !f.leaves() {
			return nil
		}
		in := route.Input{Snapshot: snap, Source: local.workload, Destination: f.OriginalDst, Network: j.network}
		if !route.Registered(in) {
			return ErrOutboundPolicy
		}
		return nil
	}
}

// outsideBasis is a state of the registry and one of the modes, which its channel stands for: a mode that changes and
// changes back lets connections out meanwhile.
type outsideBasis struct {
	registry uint64
	modes    <-chan struct{}
}

// leaves reports whether the flow goes to somebody who is not a member of the mesh: the registry's word alone is what
// allows that. A connection to a member is the members' own to judge, and outlives the service that it was made through.
func (f *Flow) leaves() bool {
	w := f.Destination.Workload
	return w == nil || w.External()
}
