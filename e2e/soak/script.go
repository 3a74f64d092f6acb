package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// kind is a sort of load.
type kind uint8

const (
	bulk      kind = iota // megabytes in both directions at once
	requests              // many small questions and answers
	short                 // one question, one answer
	halfClose             // one direction ends long before the other
	held                  // idle for most of its life
	kinds
)

// String returns the name for reports.
func (k kind) String() string {
	return [...]string{"bulk", "requests", "short", "half-close", "held"}[min(k, kinds-1)]
}

// step is a part of a connection's script. The client sends up bytes and the server receives them, then the server sends
// down bytes; with both they do so at once. Who sends first waits for the pause before.
type step struct {
	pause          time.Duration
	up, down       int
	both           bool
	finUp, finDown bool // the direction ends with this step
}

// script is what both ends of a connection do, made from the little that the client tells the server.
func script(k kind, seed uint64) []step {
	rng := rand.New(rand.NewPCG(seed, uint64(k)))
	size := func(low, high int) int { return low + rng.IntN(high-low+1) }
	pause := func(low, high time.Duration) time.Duration { return low + time.Duration(rng.Int64N(int64(high-low))) }
	switch k {
	case bulk:
		// Few are large, many are small.
		scale := 1 << rng.IntN(7)
		return []step{{both: true, up: size(0, scale*128<<10), down: size(0, scale*128<<10)}}
	case requests:
		steps := make([]step, size(20, 200))
		for i := range steps {
			steps[i] = step{up: size(1, 8<<10), down: size(1, 16<<10)}
			if rng.IntN(4) == 0 {
				steps[i].pause = pause(time.Millisecond, 50*time.Millisecond)
			}
		}
		return steps
	case halfClose:
		first, last := size(0, 1<<20), size(1, 1<<20)
		wait := pause(10*time.Millisecond, time.Second)
		if rng.IntN(2) == 0 {
			return []step{{up: first, finUp: true}, {pause: wait, down: last}}
		}
		return []step{{down: first, finDown: true}, {pause: wait, up: last}}
	case held:
		wait := pause(10*time.Second, time.Minute)
		if rng.IntN(3) == 0 {
			wait = 24 * time.Hour // until the end of the run
		}
		return []step{{up: 64, down: 64}, {pause: wait, up: size(1, 64<<10), down: size(1, 64<<10)}}
	default:
		return []step{{up: size(1, 512), down: size(1, 4<<10)}}
	}
}

// instance is one run of a pod's application.
type instance struct {
	Pod        int `json:"pod"`
	Generation int `json:"generation"`
}

// nobody is the instance that is not known.
func nobody() instance { return instance{Pod: -1} }

// header is the first thing that a client sends.
type header struct {
	id     uint64
	client instance
	kind   kind
	seed   uint64
}

const (
	headerSize   = 40
	greetingSize = 16

	headerMagic   = 0x63756c7665727431
	greetingMagic = 0x63756c7665727432
)

func (h header) encode() []byte {
	b := make([]byte, headerSize)
	binary.BigEndian.PutUint64(b, headerMagic)
	binary.BigEndian.PutUint64(b[8:], h.id)
	binary.BigEndian.PutUint32(b[16:], uint32(h.client.Pod))
	binary.BigEndian.PutUint32(b[20:], uint32(h.client.Generation))
	binary.BigEndian.PutUint64(b[24:], uint64(h.kind))
	binary.BigEndian.PutUint64(b[32:], h.seed)
	return b
}

func decodeHeader(b []byte) (header, error) {
	h := header{
		id:     binary.BigEndian.Uint64(b[8:]),
		client: instance{Pod: int(binary.BigEndian.Uint32(b[16:])), Generation: int(binary.BigEndian.Uint32(b[20:]))},
		kind:   kind(binary.BigEndian.Uint64(b[24:])),
		seed:   binary.BigEndian.Uint64(b[32:]),
	}
	if magic := binary.BigEndian.Uint64(b); magic != headerMagic || h.kind >= kinds {
		return header{}, fmt.Errorf("header %x", b)
	}
	return h, nil
}

// encodeGreeting is the first thing that a server sends: who it is.
func encodeGreeting(server instance) []byte {
	b := make([]byte, greetingSize)
	binary.BigEndian.PutUint64(b, greetingMagic)
	binary.BigEndian.PutUint32(b[8:], uint32(server.Pod))
	binary.BigEndian.PutUint32(b[12:], uint32(server.Generation))
	return b
}

func decodeGreeting(b []byte) (instance, error) {
	if binary.BigEndian.Uint64(b) != greetingMagic {
		return nobody(), errors.New("greeting is none")
	}
	return instance{Pod: int(binary.BigEndian.Uint32(b[8:])), Generation: int(binary.BigEndian.Uint32(b[12:]))}, nil
}
