package nft_test

import (
	"testing"

	"github.com/culvert-mesh/culvert/redirect/netnstest"
	"github.com/culvert-mesh/culvert/redirect/nft"
)

// TestReadWhileDeleted: a table that goes while it is read is none, and no error.
func TestReadWhileDeleted(t *testing.T) {
	ns := netnstest.New(t)
	want, err := nft.Desired(nft.Options{DNS: true, IPv6: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	met := 0
	for range 100 {
		if err := want.Apply(ns); err != nil {
			t.Fatal(err)
		}
		deleted := make(chan error, 1)
		go func() { deleted <- nft.Delete(ns) }()
		for gone := false; !gone; {
			have, err := nft.Read(ns)
			if err != nil {
				t.Fatal(err)
			}
			if gone = have == nil; !gone {
				met++
			}
		}
		if err := <-deleted; err != nil {
			t.Fatal(err)
		}
	}
	if met == 0 {
		t.Error("the table was always gone before it was read")
	}
}
