package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/culvert-mesh/culvert/redirect/selector"
)

// Type is the plugin's type in a configuration, and the name of its binary.
const Type = "culvert-cni"

// Defaults of Config.
const (
	DefaultAgentSocket  = "/var/run/culvert/agent/handoff.sock"
	DefaultAPIFile      = "/var/run/culvert/cni/api.json"
	DefaultLogFile      = "/var/run/culvert/cni/culvert-cni.log"
	DefaultOwnNamespace = "culvert-system"
	DefaultAgentTimeout = 10 * time.Second
	DefaultAPITimeout   = 5 * time.Second
)

// maxTimeout is the longest that may be configured: runtimes give up after a minute or
// two.
const maxTimeout = time.Minute

// Config is the plugin's entry in a CNI configuration. Paths are those of the host.
type Config struct {
	// Type is Type, which is also what empty means.
	Type string `json:"type"`
	// AgentSocket is the agent's hand-off socket. Empty means DefaultAgentSocket.
	AgentSocket string `json:"agentSocket,omitempty"`
	// APIFile says how to reach the API server. Empty means DefaultAPIFile.
	APIFile string `json:"apiFile,omitempty"`
	// LogFile gets a line for each decision; it and its predecessor are each bounded
	// to 1 MiB. Empty means DefaultLogFile.
	LogFile string `json:"logFile,omitempty"`
	// ExcludeNamespaces are left alone without asking anybody. nil means kube-system.
	ExcludeNamespaces []string `json:"excludeNamespaces"`
	// Selectors say which pods are to be in the mesh while the agent is away: those that
	// any of them takes. nil means the default ones, by the label istio.io/dataplane-mode.
	Selectors []selector.Selector `json:"selectors,omitempty"`
	// OwnNamespace is where the mesh runs. Empty means DefaultOwnNamespace.
	OwnNamespace string `json:"ownNamespace,omitempty"`
	// AgentTimeout bounds waiting for the agent's answer, APITimeout the look-up at
	// the API server when the agent is away. Zero means the defaults; at most a
	// minute.
	AgentTimeout Duration `json:"agentTimeout,omitzero"`
	APITimeout   Duration `json:"apiTimeout,omitzero"`
	// StatusNeedsAgent makes STATUS fail while the agent is away or cannot enrol. The
	// agent has to use the host's network then: a runtime whose plugins fail STATUS
	// starts no other pods.
	StatusNeedsAgent bool `json:"statusNeedsAgent,omitempty"`
}

// Duration is a time.Duration that is written as text ("10s").
type Duration time.Duration

// MarshalText writes the duration as time.Duration does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads what time.ParseDuration reads.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	*d = Duration(v)
	return err
}

// JSON returns the configuration as an entry for a chain of plugins, with all
// defaults written out.
func (c Config) JSON() (json.RawMessage, error) {
	c = c.withDefaults()
	if err := c.validate(); err != nil {
		return nil, fmt.Errorf("write plugin configuration: %w", err)
	}
	return json.Marshal(c)
}

func (c Config) withDefaults() Config {
	for _, f := range []struct {
		field *string
		value string
	}{
		{&c.Type, Type},
		{&c.AgentSocket, DefaultAgentSocket},
		{&c.APIFile, DefaultAPIFile},
		{&c.LogFile, DefaultLogFile},
		{&c.OwnNamespace, DefaultOwnNamespace},
	} {
		if *f.field == "" {
			*f.field = f.value
		}
	}
	if c.ExcludeNamespaces == nil {
		c.ExcludeNamespaces = []string{"kube-system"}
	}
	if c.AgentTimeout == 0 {
		c.AgentTimeout = Duration(DefaultAgentTimeout)
	}
	if c.APITimeout == 0 {
		c.APITimeout = Duration(DefaultAPITimeout)
	}
	return c
}

func (c Config) validate() error {
	var errs []error
	if c.Type != Type {
		errs = append(errs, fmt.Errorf("type is %.40q, not %s", c.Type, Type))
	}
	for _, f := range []struct{ name, path string }{
		{"agentSocket", c.AgentSocket}, {"apiFile", c.APIFile}, {"logFile", c.LogFile},
	} {
		if !filepath.IsAbs(f.path) {
			errs = append(errs, fmt.Errorf("%s %.200q is not an absolute path", f.name, f.path))
		}
	}
	for _, s := range c.Selectors {
		errs = append(errs, s.Validate())
	}
	for _, f := range []struct {
		name  string
		value Duration
	}{{"agentTimeout", c.AgentTimeout}, {"apiTimeout", c.APITimeout}} {
		if f.value <= 0 || time.Duration(f.value) > maxTimeout {
			errs = append(errs, fmt.Errorf("%s %s is not between 0 and %s", f.name, time.Duration(f.value), maxTimeout))
		}
	}
	return errors.Join(errs...)
}

// input is what the runtime writes to the plugin's standard input.
type input struct {
	Config
	CNIVersion string          `json:"cniVersion"`
	PrevResult json.RawMessage `json:"prevResult"`
}

func parseInput(stdin []byte) (input, error) {
	var in input
	if err := json.Unmarshal(stdin, &in); err != nil {
		return input{}, fmt.Errorf("parse configuration: %w", err)
	}
	in.Config = in.withDefaults()
	if err := in.validate(); err != nil {
		return input{}, fmt.Errorf("parse configuration: %w", err)
	}
	if bytes.Equal(in.PrevResult, []byte("null")) {
		in.PrevResult = nil
	}
	return in, nil
}
