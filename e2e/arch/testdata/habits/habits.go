package habits

import (
	"log/slog"
	"net"
	"time"
)

func init() {
	slog.Info("started")
}

func wait() {
	<-time.After(time.Second)
}

func parse(s string) net.IP {
	ip := net.ParseIP(s)
	if ip == nil {
		panic("no address")
	}
	return ip
}
