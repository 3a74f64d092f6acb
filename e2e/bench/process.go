package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/culvert-mesh/culvert/redirect/topology"
)

// memory is what a process holds, in bytes.
type memory struct{ rss, anonymous int64 }

// memoryOf reads the kernel's account of the process.
func memoryOf(pid int) (memory, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return memory{}, err
	}
	return parseStatus(string(text))
}

func parseStatus(text string) (memory, error) {
	var m memory
	found := 0
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(line, ":")
		if name != "VmRSS" && name != "RssAnon" {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		if err != nil {
			return memory{}, fmt.Errorf("parse %s: %w", name, err)
		}
		found++
		if name == "VmRSS" {
			m.rss = n << 10
		} else {
			m.anonymous = n << 10
		}
	}
	if found != 2 {
		return memory{}, fmt.Errorf("parse process status: %d of 2 figures found", found)
	}
	return m, nil
}

// settled waits until the process's memory has not shrunk for two seconds, at most limit, and returns it. A collector
// gives memory back some time after the load is gone.
func settled(p *topology.Process, limit time.Duration) (memory, error) {
	best, err := memoryOf(p.Pid())
	if err != nil {
		return memory{}, err
	}
	since := time.Now()
	for deadline := since.Add(limit); time.Since(since) < 2*time.Second && time.Now().Before(deadline); {
		time.Sleep(200 * time.Millisecond)
		m, err := memoryOf(p.Pid())
		if err != nil {
			return memory{}, err
		}
		if m.rss < best.rss-(64<<10) {
			since = time.Now()
		}
		best.rss, best.anonymous = min(best.rss, m.rss), min(best.anonymous, m.anonymous)
	}
	return best, nil
}

// clockTick is the unit of CPU times in /proc: USER_HZ, 100 on every Linux architecture that Go knows.
const clockTick = 10 * time.Millisecond

// cpuOf is the CPU time that the processes have used so far, in user space and in the kernel.
func cpuOf(ps []*topology.Process) (time.Duration, error) {
	var sum time.Duration
	for _, p := range ps {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Pid()))
		if err != nil {
			return 0, err
		}
		d, err := parseStat(string(text))
		if err != nil {
			return 0, err
		}
		sum += d
	}
	return sum, nil
}

func parseStat(text string) (time.Duration, error) {
	// The second field is the name in parentheses and may hold anything.
	end := strings.LastIndexByte(text, ')')
	fields := strings.Fields(text[end+1:])
	if end < 0 || len(fields) < 13 {
		return 0, fmt.Errorf("parse process statistics: %q", text)
	}
	var ticks int64
	for _, f := range fields[11:13] { // utime and stime, fields 14 and 15 of proc(5)
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("parse process statistics: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * clockTick, nil
}
