package handoff

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
)

// Version is the version of the protocol.
const Version = 1

// Sizes of messages in bytes. Longer ones are refused.
const (
	MaxRequest  = 4 << 10
	MaxResponse = 32 << 10
)

// Lengths of names in bytes. A pod's name is a DNS subdomain of at most 253.
const (
	maxName = 253
	maxUID  = 128
)

// Pod says whose network namespace it is.
type Pod struct {
	UID            string `json:"uid,omitempty"`
	Name           string `json:"name"`
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount,omitempty"`
}

// String returns "namespace/name".
func (p Pod) String() string { return p.Namespace + "/" + p.Name }

// Validate reports all faults. Names must be of lower-case letters, digits, dots and
// dashes, as Kubernetes wants them; a UID may have upper-case letters and
// underscores too.
func (p Pod) Validate() error {
	return errors.Join(
		validateUID(p.UID),
		validateName("pod name", p.Name),
		validateName("namespace", p.Namespace),
		validateName("service account", p.ServiceAccount),
	)
}

func validateUID(uid string) error {
	if uid == "" || len(uid) > maxUID {
		return fmt.Errorf("uid %.140q: not between 1 and %d bytes", uid, maxUID)
	}
	for _, c := range []byte(uid) {
		if !nameByte(c) && (c < 'A' || c > 'Z') && c != '_' {
			return fmt.Errorf("uid %q: byte %q is not allowed", uid, c)
		}
	}
	return nil
}

func validateName(what, name string) error {
	if name == "" || len(name) > maxName {
		return fmt.Errorf("%s %.270q: not between 1 and %d bytes", what, name, maxName)
	}
	for _, c := range []byte(name) {
		if !nameByte(c) {
			return fmt.Errorf("%s %q: byte %q is not allowed", what, name, c)
		}
	}
	return nil
}

func nameByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '.'
}

// Status is a pod that the agent has, and how far it is.
type Status struct {
	Pod   Pod    `json:"pod"`
	State string `json:"state"`           // "enrolled", "starting", "failed", "leaving"
	NetNS uint64 `json:"netns,omitempty"` // inode of its network namespace
	Error string `json:"error,omitempty"` // why it failed, in words
}

const (
	opAdd       = "add"
	opRemove    = "remove"
	opList      = "list"
	opCNIAdd    = "cni-add"
	opCNIDel    = "cni-del"
	opCNICheck  = "cni-check"
	opCNIStatus = "cni-status"
)

// request is a message to the agent.
type request struct {
	Version   int          `json:"v"`
	Op        string       `json:"op"`
	Pod       *Pod         `json:"pod,omitempty"`       // add, cni-*; these have no service account
	UID       string       `json:"uid,omitempty"`       // remove
	Addresses []netip.Addr `json:"addresses,omitempty"` // cni-add, cni-check
}

// response is a message from the agent.
type response struct {
	Version  int      `json:"v"`
	Error    string   `json:"error,omitempty"`
	Pods     []Status `json:"pods,omitempty"`     // list
	More     bool     `json:"more,omitempty"`     // list: another response follows
	Enrolled *bool    `json:"enrolled,omitempty"` // cni-add, cni-check
}

// parseRequest reads and checks a request; what it returns may be used as it is.
func parseRequest(b []byte) (request, error) {
	var r request
	if len(b) > MaxRequest {
		return request{}, fmt.Errorf("request is longer than %d bytes", MaxRequest)
	}
	if err := unmarshal(b, &r); err != nil {
		return request{}, fmt.Errorf("parse request: %w", err)
	}
	if r.Version != Version {
		return request{}, fmt.Errorf("request is of version %d, this agent speaks %d", r.Version, Version)
	}
	switch r.Op {
	case opAdd:
		if r.Pod == nil {
			return request{}, errors.New("add names no pod")
		}
		if err := r.Pod.Validate(); err != nil {
			return request{}, fmt.Errorf("add: %w", err)
		}
	case opRemove:
		if err := validateUID(r.UID); err != nil {
			return request{}, fmt.Errorf("remove: %w", err)
		}
	case opCNIAdd, opCNIDel, opCNICheck:
		if r.Pod == nil {
			return request{}, fmt.Errorf("%s names no pod", r.Op)
		}
		if err := r.cniPod().Validate(); err != nil {
			return request{}, fmt.Errorf("%s: %w", r.Op, err)
		}
	case opList, opCNIStatus:
	default:
		return request{}, fmt.Errorf("operation %.40q is unknown", r.Op)
	}
	return r, nil
}

// parseResponse reads a response, with the same mistrust: an agent is not always
// what listens there.
func parseResponse(b []byte) (response, error) {
	var r response
	if len(b) > MaxResponse {
		return response{}, fmt.Errorf("response is longer than %d bytes", MaxResponse)
	}
	if err := unmarshal(b, &r); err != nil {
		return response{}, fmt.Errorf("parse response: %w", err)
	}
	if r.Version != Version {
		return response{}, fmt.Errorf("agent speaks version %d, this client %d: %.200q", r.Version, Version, r.Error)
	}
	return r, nil
}

// unmarshal reads exactly one JSON value.
func unmarshal(b []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(into); err != nil {
		return err
	}
	if d.More() {
		return errors.New("bytes after the message")
	}
	return nil
}

// split cuts a list into responses of at most MaxResponse bytes. Error texts were
// bounded before, so a status always fits.
func split(pods []Status) []response {
	out := []response{{Version: Version}}
	size := 0
	for _, p := range pods {
		b, err := json.Marshal(p)
		if err != nil { // strings and numbers cannot fail
			continue
		}
		last := &out[len(out)-1]
		if size+len(b) > MaxResponse-256 && len(last.Pods) > 0 {
			last.More = true
			out = append(out, response{Version: Version})
			last, size = &out[len(out)-1], 0
		}
		last.Pods = append(last.Pods, p)
		size += len(b) + 1
	}
	return out
}

// bounded cuts a text that came from elsewhere, so that it fits into a message even
// when JSON escapes each byte of it.
func bounded(text string) string {
	const limit = 2 << 10
	if len(text) > limit {
		return text[:limit] + "…"
	}
	return text
}
