package xds

import "strings"

// maxErrorDetail bounds the text of a refusal, in bytes.
const maxErrorDetail = 16 << 10

// rejection is a resource that was not taken.
type rejection struct {
	name string
	err  error
	// held says that something stands in its place.
	held bool
}

// describe makes the text of a refusal.
func describe(rejected []rejection) string {
	var b strings.Builder
	for i, r := range rejected {
		if i > 0 {
			b.WriteString("; ")
		}
		if b.Len() > maxErrorDetail {
			b.WriteString("and more")
			break
		}
		b.WriteString(r.name + ": " + r.err.Error())
	}
	return strings.ToValidUTF8(b.String(), "�")
}

// record notes the versions of what was taken. Rejected resources are left out, or
// the server would not send them again after a reconnect. In whose place something
// stands is held in no version: the server sends it again, or says that it is gone.
func (s *subscription) record(r response, rejected []rejection) {
	bad := make(map[string]bool, len(rejected))
	for _, name := range r.GetRemovedResources() {
		delete(s.versions, name)
	}
	for _, rj := range rejected {
		bad[rj.name] = true
		if rj.held {
			s.versions[rj.name] = ""
		}
	}
	for _, res := range r.GetResources() {
		if name := res.GetName(); !bad[name] {
			s.versions[name] = res.GetVersion()
		}
	}
}

// named notes under which key the resource of that name is held.
func (s *subscription) named(name, key string) {
	if name != key {
		s.keys[name] = key
	} else {
		delete(s.keys, name)
	}
}

// removed returns the keys of what the response removes.
func (s *subscription) removed(r response) []string {
	keys := make([]string, 0, len(r.GetRemovedResources()))
	for _, name := range r.GetRemovedResources() {
		if key, ok := s.keys[name]; ok {
			delete(s.keys, name)
			name = key
		}
		keys = append(keys, name)
	}
	return keys
}
