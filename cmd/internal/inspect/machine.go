package inspect

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"k8s.io/apimachinery/pkg/util/version"

	"github.com/culvert-mesh/culvert/deploy"
	"github.com/culvert-mesh/culvert/redirect/netns"
)

// Machine tries on this machine what an agent needs of the kernel. It needs root; without it that is all it says.
func Machine() []Finding {
	var l list
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		l.add(Wrong, "this machine", fmt.Sprintf("is not Linux, or /proc is not mounted: %v", err))
		return l.all
	}
	l.kernel("this machine", strings.TrimSpace(string(release)))
	if os.Geteuid() != 0 {
		l.add(Note, "this machine", "features of the kernel were not tried: that takes root")
		return l.all
	}
	err = netns.Probe(netns.Needs{Namespaces: true, Capture: true})
	if err == nil {
		l.add(OK, "this machine", "the kernel has all that capturing needs")
		return l.all
	}
	for _, e := range flatten(err) {
		l.add(Wrong, "this machine", e.Error())
	}
	return l.all
}

// kernel compares a release with the oldest that will do.
func (l *list) kernel(about, release string) {
	have, err := version.ParseGeneric(release)
	if err != nil {
		l.add(Warning, about, fmt.Sprintf("kernel %s: not a version that can be compared with %s", release, deploy.MinKernel))
		return
	}
	if have.LessThan(version.MustParseGeneric(deploy.MinKernel)) {
		l.add(Wrong, about, fmt.Sprintf("kernel %s is too old: NAT in inet tables needs Linux %s", release, deploy.MinKernel))
		return
	}
	l.add(OK, about, "kernel "+release)
}

// flatten returns the errors that were joined.
func flatten(err error) []error {
	var joined interface{ Unwrap() []error }
	if !errors.As(err, &joined) {
		return []error{err}
	}
	return joined.Unwrap()
}
