package kube

import (
	"net/netip"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func netipTypes() []any { return []any{netip.Addr{}, netip.Prefix{}} }
