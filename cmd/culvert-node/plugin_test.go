package main

import (
	"encoding/json"
	"testing"

	"github.com/culvert-mesh/culvert/redirect/cni"
)

// TestPluginSelectors: the plugin decides by the same selectors while the agent is away.
func TestPluginSelectors(t *testing.T) {
	selectors, err := parseSelectors("mesh=yes,!debug;team!=ops|;mesh")
	if err != nil {
		t.Fatal(err)
	}
	text, err := cni.Config{Selectors: pluginSelectors(selectors)}.JSON()
	if err != nil {
		t.Fatal(err)
	}
	var entry struct {
		Selectors json.RawMessage `json:"selectors"`
	}
	if err := json.Unmarshal(text, &entry); err != nil {
		t.Fatal(err)
	}
	const want = `[{"pod":[{"label":"mesh","operator":"In","values":["yes"]},{"label":"debug","operator":"DoesNotExist"}],` +
		`"namespace":[{"label":"team","operator":"NotIn","values":["ops"]}]},{"namespace":[{"label":"mesh","operator":"Exists"}]}]`
	if string(entry.Selectors) != want {
		t.Errorf("the plugin gets %s, want %s", entry.Selectors, want)
	}
	if got := pluginSelectors(nil); got != nil {
		t.Errorf("without selectors the plugin gets %v", got)
	}
}
