package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"time"
)

// probed is what came of asking one target.
type probed struct {
	Target    string `json:"target"`
	Pod       string `json:"pod,omitempty"` // who answered
	Namespace string `json:"namespace,omitempty"`
	Error     string `json:"error,omitempty"`
	Millis    int64  `json:"millis"`
}

// probe reads lists of addresses from the standard input, one JSON list a line, asks all of a list at once over HTTP, each
// on a connection of its own, and prints a table of what came of it as one line, in the order of the list.
func probe(args []string) (any, error) {
	flags := flag.NewFlagSet("probe", flag.ExitOnError)
	timeout := flags.Duration("timeout", 5*time.Second, "for each")
	_ = flags.Parse(args) // it exits
	client := freshClient(*timeout)
	fmt.Println("open")
	lines := bufio.NewReader(os.Stdin)
	out := json.NewEncoder(os.Stdout)
	rounds := 0
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return map[string]int{"rounds": rounds}, nil
		}
		if err != nil {
			return nil, err
		}
		var targets []string
		if err := json.Unmarshal(line, &targets); err != nil {
			return nil, fmt.Errorf("read targets: %w", err)
		}
		if err := out.Encode(probeAll(client, targets)); err != nil {
			return nil, err
		}
		rounds++
	}
}

func probeAll(client *http.Client, targets []string) []probed {
	table := make([]probed, len(targets))
	var wg sync.WaitGroup
	for i, target := range targets {
		wg.Go(func() {
			r := exchange(client, "http://"+target+"/")
			table[i] = probed{Target: target, Error: r.Error, Millis: r.Millis}
			var w who
			if r.Error == "" && (r.Status != http.StatusOK || json.Unmarshal(r.Body, &w) != nil) {
				table[i].Error = fmt.Sprintf("status %d %s", r.Status, r.Text)
			}
			table[i].Pod, table[i].Namespace = w.Pod, w.Namespace
		})
	}
	wg.Wait()
	return table
}
