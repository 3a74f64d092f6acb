package record_test

import (
	"testing"

	"github.com/culvert-mesh/culvert/hbone/record"
)

// The figures to beat, and the limit of bulk throughput: DESIGN.md names 6.9 and 5.9 GB/s.

func BenchmarkSeal(b *testing.B) {
	for _, s := range suites {
		b.Run(s.name, func(b *testing.B) {
			c, _ := newPair(b, s.suite)
			slot := make([]byte, record.HeaderLen+record.MaxPayload+record.TrailerLen)
			b.SetBytes(record.MaxPayload)
			b.ReportAllocs()
			for b.Loop() {
				c.Seal(slot, record.MaxPayload)
			}
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	for _, s := range suites {
		b.Run(s.name, func(b *testing.B) {
			secret := secretOf(s.suite, 9)
			st := record.State{Suite: s.suite, ReadSecret: secret, WriteSecret: secret}
			c, err := record.New(st)
			if err != nil {
				b.Fatal(err)
			}
			// Opening in place destroys the record and every record has its own nonce, so one round seals and opens a
			// batch, and only the opening is timed.
			const batch = 256
			slots := make([][]byte, batch)
			for i := range slots {
				slots[i] = make([]byte, record.HeaderLen+record.MaxPayload+record.TrailerLen)
			}
			b.SetBytes(record.MaxPayload)
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				if i%batch == 0 {
					b.StopTimer()
					for _, slot := range slots {
						c.Seal(slot, record.MaxPayload)
					}
					b.StartTimer()
				}
				if _, err := c.Open(slots[i%batch]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkSmallRoundTrip(b *testing.B) {
	for _, s := range suites {
		b.Run(s.name, func(b *testing.B) {
			x, y := newPair(b, s.suite)
			slot := make([]byte, record.HeaderLen+100+record.TrailerLen)
			b.ReportAllocs()
			for b.Loop() {
				n := x.Seal(slot, 100)
				if _, err := y.Open(slot[:n]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
