package wiretap

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/culvert-mesh/culvert/redirect/netns"
)

// Config says where to listen and what for.
type Config struct {
	// NS is the namespace to listen in. Required; it need not outlive Start.
	NS *netns.NS
	// Interface is the name of an interface there. Required: a packet crosses several interfaces of a namespace and
	// would be counted on each.
	Interface string
	// Needles are what to look for in payloads, none of them empty, at most 64. Optional.
	Needles [][]byte
	// MaxFlows bounds the flows that are told apart. Zero means 4096. Packets of further ones are counted, and their
	// payload is still searched, but packet by packet.
	MaxFlows int
}

// receiveBuffer is what the kernel may hold for the tap: about 60 packets of the largest size.
const receiveBuffer = 8 << 20

// maxPacket is above the largest packet that a veth pair hands over (64 KiB, segmented later or never).
const maxPacket = 128 << 10

// Tap is a running capture.
type Tap struct {
	file *os.File
	done chan struct{}

	mu      sync.Mutex
	book    *book
	dropped uint64
	err     error
}

// Start begins to listen; what crosses the interface from its return on is in the report. It needs CAP_NET_RAW in the
// namespace.
func Start(cfg Config) (*Tap, error) {
	if cfg.NS == nil || cfg.Interface == "" || len(cfg.Needles) > 64 {
		return nil, errors.New("start wiretap: a namespace, an interface and at most 64 needles are required")
	}
	for i, n := range cfg.Needles {
		if len(n) == 0 {
			return nil, fmt.Errorf("start wiretap: needle %d is empty", i)
		}
	}
	if cfg.MaxFlows <= 0 {
		cfg.MaxFlows = 4096
	}
	fd, err := open(cfg.NS, cfg.Interface)
	if err != nil {
		return nil, fmt.Errorf("start wiretap on %s: %w", cfg.Interface, err)
	}
	t := &Tap{
		file: os.NewFile(uintptr(fd), "wiretap "+cfg.Interface),
		done: make(chan struct{}),
		book: newBook(cfg.Needles, cfg.MaxFlows),
	}
	go t.listen()
	return t, nil
}

func open(ns *netns.NS, name string) (int, error) {
	var index int
	err := ns.Do(func() error {
		i, err := net.InterfaceByName(name)
		if err == nil {
			index = i.Index
		}
		return err
	})
	if err != nil {
		return -1, err
	}
	// Without a protocol nothing is captured before bind names the interface.
	fd, err := ns.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return -1, err
	}
	// The forced form passes the machine's limit where this process may; otherwise the limit holds.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: index}); err != nil {
		_ = unix.Close(fd)
		return -1, os.NewSyscallError("bind", err)
	}
	return fd, nil
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

func (t *Tap) listen() {
	defer close(t.done)
	buf := make([]byte, maxPacket)
	for {
		n, err := t.file.Read(buf)
		switch {
		case err == nil:
			t.take(buf[:n])
		case errors.Is(err, unix.ENETDOWN):
			// The interface went down; it may come up again.
		case errors.Is(err, os.ErrDeadlineExceeded):
			t.drain(buf)
			return
		default:
			t.mu.Lock()
			t.err = err
			t.mu.Unlock()
			return
		}
	}
}

// drain takes what the kernel has captured before Stop.
func (t *Tap) drain(buf []byte) {
	raw, err := t.file.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) { // it fails only when the file is closed, and then there is nothing to drain
		for range 1 << 20 { // a stop is a stop, also on a busy wire
			n, _, err := unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT)
			if err != nil {
				return
			}
			t.take(buf[:n])
		}
	})
}

func (t *Tap) take(packet []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.book.packet(packet)
}

// Report tells what was seen so far.
func (t *Tap) Report() Report {
	t.countDrops()
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.book.report()
	r.Dropped = t.dropped
	return r
}

// countDrops adds what the kernel threw away for lack of buffer since the last call.
func (t *Tap) countDrops() {
	raw, err := t.file.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) { // fails only after Stop, which has counted
		if stats, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
			t.mu.Lock()
			t.dropped += uint64(stats.Drops)
			t.mu.Unlock()
		}
	})
}

// Stop ends the capture and returns the last report. The error is what ended the capture before, if anything did: the
// report is incomplete then.
func (t *Tap) Stop() (Report, error) {
	if err := t.file.SetReadDeadline(time.Unix(1, 0)); err != nil {
		return Report{}, fmt.Errorf("stop wiretap: %w", err)
	}
	<-t.done
	report := t.Report()
	err := errors.Join(t.err, t.file.Close())
	if err != nil {
		return report, fmt.Errorf("stop wiretap: %w", err)
	}
	return report, nil
}
