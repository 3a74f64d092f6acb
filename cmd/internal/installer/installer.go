// Package installer puts Culvert into a cluster, changes it there and takes it away: checks before, custom resource
// definitions, the chart through Helm, progress while waiting, and the reasons when it does not become ready.
//
//	install    checks → definitions → namespace → chart → wait ── not ready ──► say why → remove the chart
//	upgrade    checks → definitions → chart → wait ─────────────── not ready ──► say why → roll back
//	uninstall  agents go first, so that each cleans its node → chart → what the controller made
//
// The checks end with a rehearsal of the chart: what can be refused is refused before anything is written.
// Definitions are never deleted and never replaced by older ones. The release is an ordinary one of Helm, so `helm list`
// and `helm get` know it too. An Installer does one thing at a time.
package installer

import (
	"errors"
	"fmt"
	"io"
	"time"

	"helm.sh/helm/v3/pkg/action"
	"helm.sh/helm/v3/pkg/chart"

	"github.com/culvert-mesh/culvert/cmd/internal/access"
	"github.com/culvert-mesh/culvert/deploy"
)

// Config is what an Installer works with. All fields but Poll are required.
type Config struct {
	Access *access.Access
	// Helm keeps the release and applies objects.
	Helm  *action.Configuration
	Chart *chart.Chart
	// Namespace to install into.
	Namespace string
	// Out gets progress, one line each.
	Out io.Writer
	// Poll is how often the state is asked for while waiting. Zero means a second.
	Poll time.Duration
}

// Installer installs, upgrades and uninstalls. Create it with New.
type Installer struct {
	Config
}

// New checks the configuration.
func New(cfg Config) (*Installer, error) {
	if cfg.Access == nil || cfg.Helm == nil || cfg.Chart == nil || cfg.Namespace == "" || cfg.Out == nil {
		return nil, errors.New("make installer: access, Helm, chart, namespace and output are required")
	}
	if cfg.Poll <= 0 {
		cfg.Poll = time.Second
	}
	return &Installer{Config: cfg}, nil
}

// CRDMode says what happens to custom resource definitions.
type CRDMode string

// The modes.
const (
	ApplyCRDs CRDMode = "apply" // those that are absent or older
	SkipCRDs  CRDMode = "skip"  // somebody else keeps them
	OnlyCRDs  CRDMode = "only"  // them and nothing else
)

// Options of one installation or upgrade.
type Options struct {
	// Values of the chart, over its defaults. The map belongs to the call.
	Values map[string]any
	CRDs   CRDMode
	// Wait for all to be ready, for at most Timeout, and undo what was done when that is not reached.
	Wait    bool
	Timeout time.Duration
	// KeepFailed leaves what does not become ready as it is, to be looked at.
	KeepFailed bool
	// ResetValues forgets the values of the last installation; only for Upgrade.
	ResetValues bool
	// TakeOver goes on where istio-cni captures too; for moving from one to the other by hand.
	TakeOver bool
}

// say prints one line of progress.
func (i *Installer) say(format string, args ...any) {
	fmt.Fprintf(i.Out, format+"\n", args...)
}

// release is the name of the release; one cluster has one.
const release = deploy.Release
