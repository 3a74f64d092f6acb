package redirect_test

import (
	"testing"

	"github.com/culvert-mesh/culvert/redirect"
)

// BenchmarkVerify is what the audit costs for a pod that is as it should be.
func BenchmarkVerify(b *testing.B) {
	l := newLab(b)
	c := l.capture(redirect.Options{DNS: true})
	for b.Loop() {
		if _, err := c.Verify(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkApply is what enrolling costs besides the listeners.
func BenchmarkApply(b *testing.B) {
	l := newLab(b)
	c := l.capture(redirect.Options{DNS: true})
	for b.Loop() {
		if _, err := c.Apply(); err != nil {
			b.Fatal(err)
		}
	}
}
