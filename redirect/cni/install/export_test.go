package install

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Step sets what is called between any two changes of the disk.
func (i *Installer) Step(f func(name string)) { i.step = f }

// Ensure looks once, as Run does again and again.
func (i *Installer) Ensure() error {
	i.record(i.ensure())
	return i.Err()
}

// Claim makes i the owner until the end of the test, as Run does at first.
func (i *Installer) Claim(tb testing.TB) {
	tb.Helper()
	tb.Cleanup(i.release)
	if err := i.claim(); err != nil {
		tb.Fatal(err)
	}
}

// NoLocks makes i one that is on a file system without locks.
func (i *Installer) NoLocks() { i.flock = func(int, int) error { return unix.ENOLCK } }

// Rivals is the limiter of insertions.
type Rivals struct{ r rivals }

// Due is told of an insertion.
func (r *Rivals) Due(file string, now time.Time) error { return r.r.due(file, now) }

// TempPrefix begins the names of files in the making.
const TempPrefix = tempPrefix
