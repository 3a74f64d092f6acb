package hostrules_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/culvert-mesh/culvert/redirect/hostrules"
	"github.com/culvert-mesh/culvert/redirect/nft"
)

// TestDocs: what users are told has the names and numbers that the code has.
func TestDocs(t *testing.T) {
	text, err := os.ReadFile("../../docs/probes.md")
	if err != nil {
		t.Fatal(err)
	}
	parts := []string{
		fmt.Sprintf("DSCP %d (%#x)", hostrules.Mark, hostrules.Mark),
		"`inet " + nft.HostTableName + "`", "`bridge " + nft.HostTableName + "`",
	}
	for _, kind := range []hostrules.Kind{
		hostrules.KindUID, hostrules.KindShared, hostrules.KindMissing, hostrules.KindBridge, hostrules.KindForged,
	} {
		parts = append(parts, fmt.Sprintf("| `%s` |", kind))
	}
	for _, part := range parts {
		if !strings.Contains(string(text), part) {
			t.Errorf("docs/probes.md does not say %q", part)
		}
	}
}
