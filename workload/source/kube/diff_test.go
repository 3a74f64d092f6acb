package kube

import "net/netip"

func netipTypes() []any { return []any{netip.Addr{}, netip.Prefix{}} }
