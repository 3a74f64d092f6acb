package handoff

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

// What parses satisfies the limits, and means the same after another round.
func FuzzParseRequest(f *testing.F) {
	f.Add([]byte(`{"v":1,"op":"add","pod":{"uid":"u","name":"n","namespace":"ns","serviceAccount":"sa"}}`))
	f.Add([]byte(`{"v":1,"op":"remove","uid":"u"}`))
	f.Add([]byte(`{"v":1,"op":"list"}`))
	f.Add([]byte(`{"v":1,"op":"cni-add","pod":{"namespace":"ns","name":"n","uid":"u"},"addresses":["10.0.0.7","fd00::7"]}`))
	f.Add([]byte(`{"v":1,"op":"cni-del","pod":{"namespace":"ns","name":"n"}}`))
	f.Add([]byte(`{"v":1,"op":"cni-check","pod":{"namespace":"ns","name":"n"},"addresses":["fe80::1%eth0"]}`))
	f.Add([]byte(`{"v":2,"op":"list","unknown":[{}]}`))
	f.Add([]byte("\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRequest(b)
		if err != nil {
			return
		}
		if r.Op == opAdd {
			if err := r.Pod.Validate(); err != nil {
				t.Fatalf("accepted pod is not valid: %v", err)
			}
		}
		if strings.HasPrefix(r.Op, "cni-") && r.Op != opCNIStatus {
			if err := r.cniPod().Validate(); err != nil {
				t.Fatalf("accepted pod is not valid: %v", err)
			}
		}
		text, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if len(text) > MaxRequest {
			t.Skip("escaping made it longer")
		}
		again, err := parseRequest(text)
		if err != nil || !reflect.DeepEqual(r, again) {
			t.Fatalf("second round of %s: %+v, %v", text, again, err)
		}
	})
}

func FuzzParseResponse(f *testing.F) {
	f.Add([]byte(`{"v":1}`))
	f.Add([]byte(`{"v":1,"error":"no"}`))
	f.Add([]byte(`{"v":1,"pods":[{"pod":{"uid":"u"},"state":"enrolled","netns":7}],"more":true}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := parseResponse(b); err == nil && r.Version != Version {
			t.Fatalf("accepted version %d", r.Version)
		}
	})
}

func FuzzReceiveRights(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{16, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0})
	f.Add([]byte{18, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0}) // half a descriptor
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = rights(b) // the numbers in it are no open descriptors, so nothing is closed
	})
}

func TestSplitKeepsAll(t *testing.T) {
	pods := make([]Status, 1000)
	for i := range pods {
		pods[i].Pod.UID = string(rune('a' + i%26))
		pods[i].Error = bounded(string(make([]byte, i*5)))
	}
	n := 0
	parts := split(pods)
	for i, r := range parts {
		b, err := json.Marshal(r)
		if err != nil || len(b) > MaxResponse {
			t.Fatalf("response %d has %d bytes, %v", i, len(b), err)
		}
		if r.More != (i < len(parts)-1) {
			t.Errorf("response %d of %d says more: %v", i, len(parts), r.More)
		}
		n += len(r.Pods)
	}
	if n != len(pods) {
		t.Errorf("%d of %d pods are left", n, len(pods))
	}
	if got := split(nil); len(got) != 1 || got[0].More {
		t.Errorf("an empty list is %+v", got)
	}
}
