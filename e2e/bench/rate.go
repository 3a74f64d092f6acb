package main

import (
	"encoding/json"
	"errors"
	"flag"
	"io"
	"net/netip"
	"os"
	"syscall"
	"time"
)

// The rate tools are one thread with one epoll each: a thread for each client would spend more on waking each other than
// what is measured takes.

const epollET = 1 << 31

// poller is an epoll of descriptors.
type poller struct {
	fd     int
	events [64]syscall.EpollEvent
}

func newPoller() (*poller, error) {
	fd, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	return &poller{fd: fd}, nil
}

func (p *poller) close() { _ = syscall.Close(p.fd) }

func (p *poller) add(fd int, events uint32) error {
	ev := syscall.EpollEvent{Events: events, Fd: int32(fd)}
	return os.NewSyscallError("epoll_ctl", syscall.EpollCtl(p.fd, syscall.EPOLL_CTL_ADD, fd, &ev))
}

// wait returns what is ready, nothing after d.
func (p *poller) wait(d time.Duration) ([]syscall.EpollEvent, error) {
	n, err := syscall.EpollWait(p.fd, p.events[:], int(d.Milliseconds()))
	if err != nil && !errors.Is(err, syscall.EINTR) {
		return nil, os.NewSyscallError("epoll_wait", err)
	}
	return p.events[:max(n, 0)], nil
}

func tcpSocket() (int, error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	return fd, os.NewSyscallError("socket", err)
}

func socketAddress(a netip.AddrPort) *syscall.SockaddrInet4 {
	return &syscall.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
}

// rateServer answers one byte with one byte and closes: the least that a server can do, so that the measurement is of
// what is between.
func rateServer(args []string) error {
	addr, err := oneAddress(args)
	if err != nil {
		return err
	}
	l, err := tcpSocket()
	if err != nil {
		return err
	}
	if err := syscall.SetsockoptInt(l, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	if err := syscall.Bind(l, socketAddress(addr)); err != nil {
		return os.NewSyscallError("bind", err)
	}
	if err := syscall.Listen(l, 16384); err != nil {
		return os.NewSyscallError("listen", err)
	}
	p, err := newPoller()
	if err != nil {
		return err
	}
	if err := p.add(l, syscall.EPOLLIN); err != nil {
		return err
	}
	for {
		events, err := p.wait(time.Minute)
		if err != nil {
			return err
		}
		for _, ev := range events {
			if int(ev.Fd) != l {
				answerOnce(int(ev.Fd))
			} else if err := p.accept(l); err != nil {
				return err
			}
		}
	}
}

// accept takes what is waiting; a connection whose byte is there is answered at once.
func (p *poller) accept(l int) error {
	for {
		c, _, err := syscall.Accept4(l, syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC)
		switch {
		case errors.Is(err, syscall.EAGAIN):
			return nil
		case errors.Is(err, syscall.EINTR), errors.Is(err, syscall.ECONNABORTED):
			continue
		case err != nil:
			return os.NewSyscallError("accept", err)
		}
		if !answerOnce(c) {
			if err := p.add(c, syscall.EPOLLIN); err != nil {
				return err
			}
		}
	}
}

// answerOnce reports false when there is nothing to answer yet.
func answerOnce(c int) bool {
	var b [1]byte
	n, err := syscall.Read(c, b[:])
	if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EINTR) {
		return false
	}
	if n == 1 {
		_, _ = syscall.Write(c, b[:]) // the client counts what arrives
	}
	_ = syscall.Close(c)
	return true
}

// rateResult is what the rate client prints.
type rateResult struct {
	Connections int     `json:"connections"` // completed: a byte there, a byte back, closed by the server
	Failed      int     `json:"failed"`
	Seconds     float64 `json:"seconds"`
	Error       string  `json:"error,omitempty"` // of one that failed
}

// rateClient opens connections as fast as 16 clients can: each begins the next one when its last one has ended.
func rateClient(args []string, out io.Writer) error {
	f := flag.NewFlagSet("rate-client", flag.ContinueOnError)
	clients := f.Int("clients", 16, "clients")
	duration := f.Duration("duration", 4*time.Second, "how long")
	if err := f.Parse(args); err != nil {
		return err
	}
	addr, err := oneAddress(f.Args())
	if err != nil {
		return err
	}
	p, err := newPoller()
	if err != nil {
		return err
	}
	defer p.close()
	began := time.Now()
	r := rateRun{poller: p, target: socketAddress(addr), deadline: began.Add(*duration), calls: map[int]*call{}}
	for range *clients {
		r.next()
	}
	for len(r.calls) > 0 {
		events, err := p.wait(100 * time.Millisecond)
		if err != nil {
			return err
		}
		for _, ev := range events {
			if c := r.calls[int(ev.Fd)]; c != nil {
				r.step(c, ev.Events)
			}
		}
		if len(events) == 0 {
			r.expire()
		}
	}
	r.result.Seconds = time.Since(began).Seconds()
	return json.NewEncoder(out).Encode(r.result)
}

// rateRun is the clients of a run.
type rateRun struct {
	*poller
	target   *syscall.SockaddrInet4
	deadline time.Time
	calls    map[int]*call
	result   rateResult
}

// call is one connection: a byte there, a byte back, the end.
type call struct {
	fd       int
	began    time.Time
	sent     bool
	answered bool
}

// patience is how long a connection may take.
const ratePatience = 10 * time.Second

var (
	errRateSlow  = errors.New("connection took longer than 10 s")
	errRateExtra = errors.New("read more than the answer")
	errRateShort = errors.New("connection ended before the answer")
)

// next begins a client's next connection, unless the time is over. A refusal at once ends the client for a moment: it is
// no load.
func (r *rateRun) next() {
	for time.Now().Before(r.deadline) {
		c, err := r.begin()
		if err == nil {
			r.calls[c.fd] = c
			return
		}
		r.failed(err)
		time.Sleep(time.Millisecond)
	}
}

func (r *rateRun) begin() (*call, error) {
	fd, err := tcpSocket()
	if err != nil {
		return nil, err
	}
	if err := syscall.Connect(fd, r.target); err != nil && !errors.Is(err, syscall.EINPROGRESS) {
		_ = syscall.Close(fd)
		return nil, os.NewSyscallError("connect", err)
	}
	if err := r.add(fd, syscall.EPOLLIN|syscall.EPOLLOUT|epollET); err != nil {
		_ = syscall.Close(fd)
		return nil, err
	}
	return &call{fd: fd, began: time.Now()}, nil
}

// step does what a connection can do now.
func (r *rateRun) step(c *call, events uint32) {
	b := [1]byte{'c'}
	if !c.sent && events&(syscall.EPOLLOUT|syscall.EPOLLERR|syscall.EPOLLHUP) != 0 {
		if _, err := syscall.Write(c.fd, b[:]); err != nil {
			r.end(c, os.NewSyscallError("write", err))
			return
		}
		c.sent = true
	}
	for events&(syscall.EPOLLIN|syscall.EPOLLERR|syscall.EPOLLHUP) != 0 {
		n, err := syscall.Read(c.fd, b[:])
		switch {
		case errors.Is(err, syscall.EAGAIN):
			return
		case err != nil:
			r.end(c, os.NewSyscallError("read", err))
			return
		case n == 0 && !c.answered:
			r.end(c, errRateShort)
			return
		case n == 0:
			r.end(c, nil)
			return
		case c.answered:
			r.end(c, errRateExtra)
			return
		}
		c.answered = true
	}
}

// end closes a connection, and its client goes on with the next one.
func (r *rateRun) end(c *call, err error) {
	delete(r.calls, c.fd)
	_ = syscall.Close(c.fd)
	if err != nil {
		r.failed(err)
		time.Sleep(time.Millisecond)
	} else {
		r.result.Connections++
	}
	r.next()
}

func (r *rateRun) failed(err error) {
	r.result.Failed++
	r.result.Error = err.Error()
}

// expire ends the connections that take too long.
func (r *rateRun) expire() {
	for _, c := range r.calls {
		if time.Since(c.began) > ratePatience {
			r.end(c, errRateSlow)
		}
	}
}
