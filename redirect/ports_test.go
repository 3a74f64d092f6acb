package redirect

import (
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/redirect/netns"
	"github.com/culvert-mesh/culvert/redirect/netnstest"
)

func TestPorts(t *testing.T) {
	for _, tt := range []struct{ in, out string }{
		{"", ""}, {"\n", ""}, {"80", "80"}, {"80,81,82", "80-82"}, {"30000, 100-200,150-250", "100-250,30000"},
		{"65535", "65535"}, {"0-65535", "0-65535"},
	} {
		s, err := parsePorts(tt.in)
		if err != nil || s.String() != tt.out {
			t.Errorf("parsePorts(%q) = %q, %v, want %q", tt.in, s, err, tt.out)
		}
	}
	for _, in := range []string{"a", "1-", "-1", "65536", "5-4", "1-2-3"} {
		if _, err := parsePorts(in); err == nil {
			t.Errorf("parsePorts(%q) succeeded", in)
		}
	}
	some, _ := parsePorts("14999-15001,40000")
	ours := ourPorts()
	for got, want := range map[string]string{
		some.union(ours).String(): "14999-15090,40000", some.minus(ours).String(): "14999,40000", some.intersect(ours).String(): "15000-15001",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func FuzzParsePorts(f *testing.F) {
	f.Add("15000-15090,30000")
	f.Add(",,1")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := parsePorts(text)
		if err != nil {
			return
		}
		again, err := parsePorts(s.String())
		if err != nil || again != s {
			t.Fatalf("%q became %q and then %q, %v", text, s, again, err)
		}
	})
}

// TestManyReservedPorts: a list longer than a page is neither cut off nor lost.
func TestManyReservedPorts(t *testing.T) {
	ns := netnstest.New(t)
	var odd portSet
	for p := 1; p < 60000; p += 2 {
		odd.add(p, p)
	}
	netnstest.Do(t, ns, func() error { return writeSysctl(sysctlPorts, odd.String()) })
	c, err := New(ns, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Reserve(); err != nil {
		t.Fatal(err)
	}
	check := func(when string, want portSet) {
		t.Helper()
		netnstest.Do(t, ns, func() error {
			have, err := readPorts()
			if err == nil && have != want {
				t.Errorf("%s: %d bytes of ports, want %d", when, len(have.String()), len(want.String()))
			}
			return err
		})
	}
	check("reserved", odd.union(ourPorts()))
	if err := c.Delete(); err != nil {
		t.Fatal(err)
	}
	// Too many of ours were reserved to be remembered one by one, so all stay.
	check("given back", odd.union(ourPorts()))
}

// TestReadOnlyProc: where /proc/sys is mounted read-only, as container runtimes do,
// sysctls are written all the same.
func TestReadOnlyProc(t *testing.T) {
	ns := netnstest.New(t)
	own, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread gets a mount namespace of its own and ends with the goroutine
		result <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
				return err
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return err
			}
			if err := unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, ""); err != nil {
				return err
			}
			if err := unix.Mount("", "/proc/sys", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
				return err
			}
			if err := ns.Control(func(fd int) error { return unix.Setns(fd, unix.CLONE_NEWNET) }); err != nil {
				return err
			}
			if err := os.WriteFile("/proc/sys/"+sysctlPorts, []byte("1\n"), 0); err == nil || !strings.Contains(err.Error(), "read-only") {
				t.Errorf("the mount is not read-only: %v", err)
			}
			// Should this be the main thread, it never ends; so at least go home.
			return errors.Join(reservePorts(), own.Control(func(fd int) error { return unix.Setns(fd, unix.CLONE_NEWNET) }))
		}()
	}()
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	netnstest.Do(t, ns, func() error {
		have, err := readSysctl(sysctlPorts)
		if have != "15000-15090" {
			t.Errorf("reserved ports are %q", have)
		}
		return err
	})
}
