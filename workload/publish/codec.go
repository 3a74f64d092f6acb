package publish

import (
	"fmt"
	"strconv"

	"github.com/cespare/xxhash/v2"
	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/culvert-mesh/culvert/workload"
)

// The numbers of fields in envoy.service.discovery.v3, which has them for good.
const (
	responseVersion   = 1 // DeltaDiscoveryResponse
	responseResources = 2
	responseType      = 4
	responseNonce     = 5
	responseRemoved   = 6

	resourceVersion = 1 // Resource
	resourceBody    = 2
	resourceName    = 3
	resourceAliases = 4

	anyType  = 1 // google.protobuf.Any
	anyValue = 2
)

// resource is one object on the wire. It is shared by all states and clients
// that have the object in this version, and never changes.
type resource struct {
	name    string
	version string
	// wire is the resource as a field of a response, without aliases; its message
	// begins at body. frame is the same for gRPC.
	wire  []byte
	body  int
	frame mem.Buffer

	// byName says that it is a policy which governs the workloads that name it, and
	// no others.
	byName bool

	// What the resource is made of; at most one is set.
	workload *workload.Workload
	service  *workload.Service
}

// newResource makes the resource of a message. Its version is a hash of its
// content, so that replicas and restarts agree on it.
func newResource(name, typeURL string, m proto.Message) (*resource, error) {
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", name, err)
	}
	r := &resource{name: name, version: strconv.FormatUint(xxhash.Sum64(value), 16)}
	body := make([]byte, 0, len(value)+len(name)+len(typeURL)+len(r.version)+24)
	body = appendString(body, resourceName, name)
	body = appendString(body, resourceVersion, r.version)
	body = protowire.AppendTag(body, resourceBody, protowire.BytesType)
	body = protowire.AppendVarint(body, uint64(sizeField(anyType, len(typeURL))+sizeField(anyValue, len(value))))
	body = appendString(body, anyType, typeURL)
	body = protowire.AppendTag(body, anyValue, protowire.BytesType)
	body = protowire.AppendBytes(body, value)

	r.wire = make([]byte, 0, sizeField(responseResources, len(body)))
	r.wire = protowire.AppendTag(r.wire, responseResources, protowire.BytesType)
	r.wire = protowire.AppendVarint(r.wire, uint64(len(body)))
	r.body = len(r.wire)
	r.wire = append(r.wire, body...)
	r.frame = mem.SliceBuffer(r.wire)
	return r, nil
}

// withAliases returns the resource as a field of a response, with its aliases.
func (r *resource) withAliases() mem.BufferSlice {
	aliases := r.aliases()
	if len(aliases) == 0 {
		return mem.BufferSlice{r.frame}
	}
	var tail []byte
	for _, a := range aliases {
		tail = appendString(tail, resourceAliases, a)
	}
	body := r.wire[r.body:]
	head := protowire.AppendTag(nil, responseResources, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(len(body)+len(tail)))
	return mem.BufferSlice{mem.SliceBuffer(head), mem.SliceBuffer(body), mem.SliceBuffer(tail)}
}

// response is what a client is sent.
type response struct {
	typeURL   string
	nonce     string
	version   string // of the whole state, for people
	resources []*resource
	removed   []string
	aliases   bool // also send the addresses by which clients ask
	asked     bool // answers a request, as opposed to telling a change
}

// encode returns the message in pieces, most of which are shared.
func (r *response) encode() mem.BufferSlice {
	head := appendString(nil, responseVersion, r.version)
	head = appendString(head, responseType, r.typeURL)
	head = appendString(head, responseNonce, r.nonce)
	for _, name := range r.removed {
		head = appendString(head, responseRemoved, name)
	}
	out := make(mem.BufferSlice, 0, 1+len(r.resources))
	out = append(out, mem.SliceBuffer(head))
	for _, res := range r.resources {
		if r.aliases {
			out = append(out, res.withAliases()...)
		} else {
			out = append(out, res.frame)
		}
	}
	return out
}

func appendString(b []byte, field protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), s)
}

func sizeField(field protowire.Number, n int) int {
	return protowire.SizeTag(field) + protowire.SizeBytes(n)
}

// codec is protobuf's but for messages that are encoded already.
type codec struct{}

// encoded is a message on the wire.
type encoded mem.BufferSlice

// Name implements encoding.CodecV2.
func (codec) Name() string { return protocodec.Name }

// Marshal implements encoding.CodecV2.
func (codec) Marshal(v any) (mem.BufferSlice, error) {
	if m, ok := v.(encoded); ok {
		return mem.BufferSlice(m), nil
	}
	return encoding.GetCodecV2(protocodec.Name).Marshal(v)
}

// Unmarshal implements encoding.CodecV2.
func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	return encoding.GetCodecV2(protocodec.Name).Unmarshal(data, v)
}
