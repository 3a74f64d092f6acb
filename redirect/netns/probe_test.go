package netns_test

import (
	"errors"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/netnstest"
)

func TestProbeFindsAll(t *testing.T) {
	netnstest.Require(t)
	if err := netns.Probe(netns.Needs{Namespaces: true, Capture: true}); err != nil {
		t.Errorf("this kernel lacks something: %v", err)
	}
}

// TestProbeNames probes on threads that have given up capabilities.
func TestProbeNames(t *testing.T) {
	netnstest.Require(t)
	for _, tt := range []struct {
		name  string
		drop  []int
		needs netns.Needs
		want  []string
	}{
		{"net_admin", []int{unix.CAP_NET_ADMIN}, netns.Needs{Namespaces: true}, []string{"CAP_NET_ADMIN is missing: writing capture rules"}},
		{"sys_admin", []int{unix.CAP_SYS_ADMIN}, netns.Needs{Namespaces: true}, []string{"CAP_SYS_ADMIN is missing: entering the namespaces"}},
		{"sys_admin_not_needed", []int{unix.CAP_SYS_ADMIN}, netns.Needs{Capture: true}, nil},
		{"both", []int{unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN}, netns.Needs{Namespaces: true, Capture: true}, []string{"CAP_NET_ADMIN", "CAP_SYS_ADMIN"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			result := make(chan error)
			go func() {
				runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
				if err := drop(tt.drop); err != nil {
					result <- err
					return
				}
				result <- netns.Probe(tt.needs)
			}()
			err := <-result
			if len(tt.want) == 0 {
				if err != nil {
					t.Errorf("Probe = %v", err)
				}
				return
			}
			var missing *netns.MissingError
			if !errors.As(err, &missing) {
				t.Fatalf("Probe = %v, want a MissingError", err)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error does not contain %q: %v", want, err)
				}
			}
		})
	}
}

// drop takes capabilities from the calling thread.
func drop(bits []int) error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return err
	}
	for _, bit := range bits {
		data[bit/32].Effective &^= 1 << (bit % 32)
	}
	return unix.Capset(&hdr, &data[0])
}
