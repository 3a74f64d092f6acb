package kubenode_test

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"
)

// object is an object of Kubernetes as it stands in JSON.
type object = map[string]any

// apiServer answers what an agent asks of an API server: lists, watches, patches of a pod's status, events, one
// DaemonSet. It keeps to the real one's rules where the agent relies on them.
type apiServer struct {
	t   *testing.T
	srv *httptest.Server

	mu      sync.Mutex
	version int
	objects map[string]map[string]object // by resource, then namespace/name
	log     []change
	changed chan struct{}
	events  []object
	refuse  map[string]int // by "METHOD resource", or "*": the status code
	refused int
	once    bool // what is refused is refused once
	patches int
	daemon  string // see daemonLocked
	ended   bool
}

type change struct {
	version  int
	resource string
	kind     string
	object   []byte
	node     string // of a pod
}

func newAPIServer(t *testing.T) *apiServer {
	s := &apiServer{
		t: t, version: 10, objects: map[string]map[string]object{"pods": {}, "namespaces": {}, "nodes": {}, "daemonsets": {}},
		changed: make(chan struct{}), refuse: map[string]int{},
	}
	s.set(func() { s.daemonLocked("there") })
	s.srv = httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(func() {
		s.mu.Lock()
		s.ended = true
		close(s.changed)
		s.changed = make(chan struct{})
		s.mu.Unlock()
		s.srv.CloseClientConnections()
		s.srv.Close()
	})
	return s
}

func (s *apiServer) config() *rest.Config {
	return &rest.Config{Host: s.srv.URL, QPS: 1000, Burst: 1000}
}

func key(o object) string {
	m := o["metadata"].(object)
	if ns, ok := m["namespace"].(string); ok {
		return ns + "/" + m["name"].(string)
	}
	return m["name"].(string)
}

// put creates or replaces an object.
func (s *apiServer) put(resource string, o object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.putLocked(resource, o)
}

func (s *apiServer) putLocked(resource string, o object) {
	kind := "ADDED"
	if _, there := s.objects[resource][key(o)]; there {
		kind = "MODIFIED"
	}
	s.objects[resource][key(o)] = o
	s.tellLocked(kind, resource, o)
}

func (s *apiServer) tellLocked(kind, resource string, o object) {
	s.version++
	o["metadata"].(object)["resourceVersion"] = strconv.Itoa(s.version)
	body, err := json.Marshal(o)
	if err != nil {
		panic(err)
	}
	s.log = append(s.log, change{s.version, resource, kind, body, nodeOf(o)})
	close(s.changed)
	s.changed = make(chan struct{})
}

func nodeOf(o object) string {
	spec, _ := o["spec"].(object)
	name, _ := spec["nodeName"].(string)
	return name
}

// edit changes an object in place.
func (s *apiServer) edit(resource, name string, f func(object)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.objects[resource][name]
	if o == nil {
		s.t.Errorf("no %s %s", resource, name)
		return
	}
	f(o)
	s.putLocked(resource, o)
}

// daemonLocked brings the DaemonSet into a state: "there", "deleting", "namespace" when its namespace is being deleted, or ""
// without one.
func (s *apiServer) daemonLocked(state string) {
	const space, name = "culvert-system", "culvert-node"
	s.daemon = state
	set := object{"kind": "DaemonSet", "apiVersion": "apps/v1", "metadata": object{"namespace": space, "name": name, "uid": "uid-ds"}}
	switch state {
	case "":
		s.removeLocked("daemonsets", space+"/"+name)
		return
	case "deleting":
		set["metadata"].(object)["deletionTimestamp"] = "2026-01-01T00:00:00Z"
	case "namespace":
		s.putLocked("namespaces", object{"kind": "Namespace", "apiVersion": "v1", "metadata": object{
			"name": space, "uid": "uid-" + space, "deletionTimestamp": "2026-01-01T00:00:00Z",
		}})
	}
	s.putLocked("daemonsets", set)
}

func (s *apiServer) remove(resource, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.removeLocked(resource, name)
}

func (s *apiServer) removeLocked(resource, name string) {
	if o := s.objects[resource][name]; o != nil {
		delete(s.objects[resource], name)
		s.tellLocked("DELETED", resource, o)
	}
}

func (s *apiServer) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// redirection returns the annotation of a pod.
func (s *apiServer) redirection(name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.objects["pods"][name]
	if o == nil {
		return "no pod"
	}
	a, _ := o["metadata"].(object)["annotations"].(object)
	v, _ := a["ambient.istio.io/redirection"].(string)
	return v
}

// told returns the reasons of the events on a pod, and their texts.
func (s *apiServer) told(name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, e := range s.events {
		about := e["involvedObject"].(object)
		if about["namespace"].(string)+"/"+about["name"].(string) == name {
			out = append(out, fmt.Sprintf("%s: %s", e["reason"], e["message"]))
		}
	}
	return strings.Join(out, "\n")
}

func (s *apiServer) serve(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	resource := parts[len(parts)-1]
	if resource == "status" {
		resource = "status"
	} else if len(parts) > 2 && parts[len(parts)-2] == "daemonsets" {
		resource = "daemonset"
	} else if len(parts) == 4 && parts[2] == "namespaces" {
		resource = "namespace"
	}
	s.mu.Lock()
	code := max(s.refuse["*"], s.refuse[r.Method+" "+resource])
	if code != 0 {
		s.refused++
		if s.once {
			delete(s.refuse, r.Method+" "+resource)
		}
	}
	s.mu.Unlock()
	switch {
	case code != 0:
		fail(w, code)
	case resource == "daemonset":
		s.daemonSet(w, "deleting")
	case resource == "namespace":
		s.daemonSet(w, "namespace")
	case resource == "status" && r.Method == http.MethodPatch:
		s.patch(w, r, parts[3]+"/"+parts[5])
	case resource == "events" && r.Method == http.MethodPost:
		s.event(w, r)
	case s.objects[resource] == nil:
		fail(w, http.StatusNotFound)
	case r.URL.Query().Get("watch") != "":
		s.watch(w, r, resource)
	default:
		s.list(w, r, resource)
	}
}

func fail(w http.ResponseWriter, code int) {
	reasons := map[int]string{401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 409: "Conflict", 500: "InternalError"}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(object{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reasons[code], "code": code, "message": reasons[code]})
}

// daemonSet answers for the DaemonSet, or its namespace, which is being deleted in one state.
func (s *apiServer) daemonSet(w http.ResponseWriter, deleting string) {
	s.mu.Lock()
	state := s.daemon
	s.mu.Unlock()
	m := object{"name": "culvert-node"}
	switch state {
	case "":
		fail(w, 404)
		return
	case deleting:
		m["deletionTimestamp"] = "2026-01-01T00:00:00Z"
	}
	_ = json.NewEncoder(w).Encode(object{"kind": "Any", "apiVersion": "v1", "metadata": m})
}

func (s *apiServer) event(w http.ResponseWriter, r *http.Request) {
	var e object
	if err := json.NewDecoder(r.Body).Decode(&e); err != nil {
		fail(w, 400)
		return
	}
	s.mu.Lock()
	s.events = append(s.events, e)
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(e)
}

func (s *apiServer) patch(w http.ResponseWriter, r *http.Request, name string) {
	body, _ := io.ReadAll(r.Body)
	var p struct {
		Metadata struct {
			UID         string         `json:"uid"`
			Annotations map[string]any `json:"annotations"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(body, &p); err != nil || r.Header.Get("Content-Type") != "application/merge-patch+json" {
		fail(w, 400)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.patches++
	o := s.objects["pods"][name]
	switch {
	case o == nil:
		fail(w, 404)
		return
	case o["metadata"].(object)["uid"] != p.Metadata.UID:
		fail(w, 409)
		return
	}
	m := o["metadata"].(object)
	annotations, _ := m["annotations"].(object)
	annotations = maps.Clone(annotations)
	if annotations == nil {
		annotations = object{}
	}
	for k, v := range p.Metadata.Annotations {
		if v == nil {
			delete(annotations, k)
		} else {
			annotations[k] = v
		}
	}
	m["annotations"] = annotations
	s.putLocked("pods", o)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(o)
}

func wanted(r *http.Request, node string) bool {
	sel, ok := strings.CutPrefix(r.URL.Query().Get("fieldSelector"), "spec.nodeName=")
	return !ok || sel == node
}

func versionOf(resource string) string {
	if resource == "daemonsets" {
		return "apps/v1"
	}
	return "v1"
}

func kindOf(resource string) string {
	return map[string]string{"pods": "Pod", "namespaces": "Namespace", "nodes": "Node", "daemonsets": "DaemonSet"}[resource]
}

func (s *apiServer) list(w http.ResponseWriter, r *http.Request, resource string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	items := []object{}
	for _, o := range s.objects[resource] {
		if wanted(r, nodeOf(o)) {
			items = append(items, o)
		}
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(object{
		"kind": kindOf(resource) + "List", "apiVersion": versionOf(resource), "items": items,
		"metadata": object{"resourceVersion": strconv.Itoa(s.version)},
	})
}

// watch streams changes; with sendInitialEvents it begins with what is there, as client-go asks by default.
func (s *apiServer) watch(w http.ResponseWriter, r *http.Request, resource string) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	flush := w.(http.Flusher).Flush
	s.mu.Lock()
	from, _ := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	if r.URL.Query().Get("sendInitialEvents") == "true" {
		for _, o := range s.objects[resource] {
			if wanted(r, nodeOf(o)) {
				_ = enc.Encode(object{"type": "ADDED", "object": o})
			}
		}
		_ = enc.Encode(object{"type": "BOOKMARK", "object": object{"kind": kindOf(resource), "apiVersion": versionOf(resource), "metadata": object{
			"resourceVersion": strconv.Itoa(s.version), "annotations": object{"k8s.io/initial-events-end": "true"},
		}}})
		from = s.version
	}
	s.mu.Unlock()
	flush()
	for {
		s.mu.Lock()
		next, ended := s.changed, s.ended
		var send []change
		for _, c := range s.log {
			if c.version > from && c.resource == resource && wanted(r, c.node) {
				send = append(send, c)
			}
		}
		from = s.version
		s.mu.Unlock()
		for _, c := range send {
			if enc.Encode(object{"type": c.kind, "object": json.RawMessage(c.object)}) != nil {
				return
			}
		}
		flush()
		if ended {
			return
		}
		select {
		case <-next:
		case <-r.Context().Done():
			return
		case <-time.After(time.Minute):
			return
		}
	}
}
