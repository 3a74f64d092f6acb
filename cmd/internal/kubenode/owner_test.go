package kubenode_test

import (
	"testing"

	"github.com/culvert-mesh/culvert/cmd/internal/kubenode"
)

// TestUninstalled: only what says for certain that the mesh is gone takes pods out.
func TestUninstalled(t *testing.T) {
	for _, tt := range []struct {
		name   string
		daemon string // at the end
		refuse int
		hidden int  // the answer about the namespace
		never  bool // the DaemonSet could not be seen before either
		blind  bool // it could be seen, but not watched
		once   bool // the second time is answered
		config func(*kubenode.Config)
		want   bool
	}{
		{name: "upgrade", daemon: "there"},
		{name: "being_deleted", daemon: "deleting", want: true},
		{name: "namespace_being_deleted", daemon: "namespace", want: true},
		{name: "namespace_not_to_be_seen", daemon: "there", hidden: 403},
		{name: "deleted", want: true},
		{name: "permission_gone", daemon: "there", refuse: 403, want: true},
		{name: "permission_refused_for_a_moment", daemon: "there", refuse: 403, once: true},
		{name: "token_refused", daemon: "there", refuse: 401},
		{name: "token_refused_for_a_moment", daemon: "there", refuse: 401, once: true},
		{name: "token_refused_for_a_moment_and_being_deleted", daemon: "deleting", refuse: 401, once: true, blind: true, want: true},
		{name: "account_gone_after_daemonset", refuse: 401, want: true},
		{name: "account_gone_and_being_deleted", daemon: "deleting", refuse: 401, want: true},
		{name: "account_gone_with_namespace", daemon: "namespace", refuse: 401, want: true},
		{name: "account_gone_unwatched", refuse: 401, blind: true},
		{name: "account_never_known", refuse: 401, never: true},
		{name: "api_server_ill", refuse: 500},
		{name: "never_permitted", refuse: 403, never: true},
		{name: "never_there", never: true},
		{name: "unnamed", config: func(c *kubenode.Config) { c.DaemonSet = "" }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			if tt.never {
				r.api.set(func() { r.api.daemonLocked(tt.daemon) })
				r.api.refuse["GET daemonset"] = tt.refuse
			}
			if tt.blind {
				r.api.refuse["GET daemonsets"] = 403
			}
			r.run(tt.config)
			<-r.agent.Ready()
			if !tt.never && tt.config == nil {
				r.eventually(func() string {
					if owned, followed := r.agent.Owned(); !owned || followed == tt.blind {
						return "the DaemonSet was not looked at"
					}
					return ""
				})
			}
			r.api.set(func() {
				// The watches go on.
				r.api.refuse["GET daemonset"], r.api.refuse["GET daemonsets"], r.api.refuse["GET namespace"] = tt.refuse, max(tt.refuse, 403), tt.hidden
				r.api.once = tt.once
				r.api.daemonLocked(tt.daemon)
			})
			if got := r.agent.Uninstalled(t.Context()); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}
