package launch

import (
	"errors"
	"net/netip"

	"github.com/culvert-mesh/culvert/cmd/internal/conf"
)

// Common are the settings that every program has.
type Common struct {
	Admin     netip.AddrPort // of the admin server
	LogLevel  string         // as admin.NewLevels reads it
	LogFormat string         // "text" or "json"
}

// Defaults are those of all programs.
func Defaults() Common {
	return Common{Admin: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 15000), LogLevel: "info", LogFormat: "text"}
}

// Declare adds the flags, and the check that nobody else reaches the admin server.
func (c *Common) Declare(set *conf.Set) {
	conf.Add(set, &c.Admin, conf.AddrPort, conf.Option{Flag: "admin-address", Usage: "address of the admin server; loopback only"})
	conf.Add(set, &c.LogLevel, conf.String, conf.Option{Flag: "log-level", Env: []string{"CULVERT_LOG"}, Usage: "error, warn, info, debug, trace or off; scope=level pairs, separated by commas, for parts"})
	conf.Add(set, &c.LogFormat, conf.OneOf("text", "json"), conf.Option{Flag: "log-format", Env: []string{"LOG_FORMAT"}, Usage: "text or json"})
	set.Check("admin-address", func() error {
		if !c.Admin.Addr().IsLoopback() {
			return errors.New("must be a loopback address: the admin server asks for no credentials")
		}
		return nil
	})
}
