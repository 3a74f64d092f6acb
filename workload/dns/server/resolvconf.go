package server

import (
	"bufio"
	"io"
	"net/netip"
	"slices"
	"strings"
)

// ResolvConf is what the package uses of a pod's resolv.conf.
type ResolvConf struct {
	// Nameservers are in the file's order, port 53, at most three.
	Nameservers []netip.AddrPort
	// Search lists the search domains; nil when the file has none.
	Search []string
}

// ParseResolvConf reads the format of resolv.conf(5). Lines that it does not
// understand are skipped, as resolvers do; only reading can fail.
func ParseResolvConf(r io.Reader) (ResolvConf, error) {
	var c ResolvConf
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line := lines.Text()
		if i := strings.IndexAny(line, "#;"); i >= 0 {
			line = line[:i]
		}
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			addr, err := netip.ParseAddr(fields[1])
			if err == nil && len(c.Nameservers) < maxServers {
				c.Nameservers = append(c.Nameservers, netip.AddrPortFrom(addr.Unmap(), 53))
			}
		case "search", "domain": // the last one wins
			c.Search = slices.Clone(fields[1:])
		}
	}
	return c, lines.Err()
}
