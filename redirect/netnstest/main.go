package netnstest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"

	"github.com/culvert-mesh/culvert/redirect/netns"
)

// Main runs the tests of a package (call it from TestMain with os.Exit) and fails
// when they leave something behind: an interface, policy rule or mounted namespace
// on the host, a descriptor of another namespace in this process, a thread inside
// one, or a goroutine.
func Main(m *testing.M) int {
	before, err := take()
	if err != nil {
		fmt.Fprintln(os.Stderr, "netnstest:", err)
		return 1
	}
	code := m.Run()
	if code != 0 {
		return code
	}
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, "netnstest: goroutines left behind:", err)
		return 1
	}
	var left []string
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		after, err := take()
		if err != nil {
			fmt.Fprintln(os.Stderr, "netnstest:", err)
			return 1
		}
		left = slices.DeleteFunc(after, func(item string) bool { return slices.Contains(before, item) })
		if len(left) == 0 || time.Now().After(deadline) {
			break // what belongs to another test binary of this moment goes away by itself
		}
	}
	for _, item := range left {
		fmt.Fprintln(os.Stderr, "netnstest: left behind:", item)
		code = 1
	}
	return code
}

// take lists what a test could leave behind.
func take() ([]string, error) {
	own, err := netns.Current()
	if err != nil {
		return nil, err
	}
	defer func() { _ = own.Close() }()
	var items []string
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		items = append(items, "interface "+l.Attrs().Name)
	}
	rules, err := netlink.RuleList(netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list policy rules: %w", err)
	}
	for _, r := range rules {
		items = append(items, fmt.Sprintf("policy rule %d table %d", r.Priority, r.Table))
	}
	mounted, _ := filepath.Glob("/run/netns/*")
	for _, path := range mounted {
		items = append(items, "mounted namespace "+path)
	}
	for _, pattern := range []string{"/proc/self/fd/*", "/proc/self/task/*/ns/net"} {
		paths, _ := filepath.Glob(pattern)
		for _, path := range paths {
			target, err := os.Readlink(path)
			if err == nil && strings.HasPrefix(target, "net:[") && target != own.String() {
				items = append(items, fmt.Sprintf("namespace %s at %s", target, path))
			}
		}
	}
	return items, nil
}
