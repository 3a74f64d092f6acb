package main

import "encoding/binary"

// pattern is an endless stream of bytes in which every word of eight differs from those around it, so that a byte that is
// lost, doubled, swapped or from another stream shows. The zero value is a stream like any other.
type pattern struct{ seed uint64 }

func (p pattern) word(i uint64) uint64 {
	w := p.seed + i*0x9e3779b97f4a7c15
	return w ^ w>>29
}

// fill writes the stream's bytes from offset on into b.
func (p pattern) fill(b []byte, offset uint64) {
	for len(b) > 0 {
		w := p.word(offset / 8)
		if offset%8 == 0 && len(b) >= 8 {
			binary.LittleEndian.PutUint64(b, w)
			b, offset = b[8:], offset+8
			continue
		}
		b[0] = byte(w >> (8 * (offset % 8)))
		b, offset = b[1:], offset+1
	}
}

// check returns the index of the first byte of b that is not the stream's from offset on, or -1.
func (p pattern) check(b []byte, offset uint64) int {
	for i := 0; i < len(b); {
		w := p.word((offset + uint64(i)) / 8)
		shift := (offset + uint64(i)) % 8
		if shift == 0 && len(b)-i >= 8 && binary.LittleEndian.Uint64(b[i:]) == w {
			i += 8
			continue
		}
		if b[i] != byte(w>>(8*shift)) {
			return i
		}
		i++
	}
	return -1
}
