package xds

import (
	"context"
	"maps"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
)

// response is what the server sends.
type response = *discovery.DeltaDiscoveryResponse

// attempt connects, subscribes and takes what comes until the stream ends.
func (c *Client) attempt(ctx context.Context) end {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := c.connect()
	if err != nil {
		return end{err: err}
	}
	defer func() { _ = conn.Close() }()
	ctx, err = c.outgoing(ctx)
	if err != nil {
		return end{err: err}
	}
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return end{err: err}
	}
	for _, s := range c.types {
		if c.leaveOut(s) {
			continue
		}
		// An error of Send only says that the stream is over; Recv says why.
		if err := stream.Send(c.subscribe(s)); err != nil {
			break
		}
	}
	e := end{}
	var since time.Time
	for {
		r, err := stream.Recv()
		if err != nil {
			e.err = err
			break
		}
		if !e.established {
			e.established, since = true, time.Now()
			c.cfg.Logger.Info("xds stream established", "address", c.cfg.Address)
		}
		if err := stream.Send(c.take(r)); err != nil {
			c.cfg.Logger.Debug("xds response not acknowledged", "type", r.GetTypeUrl(), "error", err)
		}
	}
	if e.established {
		e.lived = time.Since(since)
	}
	return e
}

// leaveOut reports whether a type is not to be asked for this time: the server has ended the last stream because of it, and would
// tell of nothing else either. What is known of the type stays. The stream after the next end asks again.
func (c *Client) leaveOut(s *subscription) bool {
	if !s.optional || c.refused.Load() != s {
		return false
	}
	if !s.leftOut {
		s.leftOut = true
		c.cfg.Logger.Warn("the server does not serve a type: it is asked for the others alone, and what is known of this one stays as it is", "type", s.url)
	}
	return true
}

// subscribe makes the first request for a type: everything, except what is held in
// the server's version already.
func (c *Client) subscribe(s *subscription) *discovery.DeltaDiscoveryRequest {
	return &discovery.DeltaDiscoveryRequest{
		TypeUrl:                 s.url,
		Node:                    c.cfg.Node.proto(),
		InitialResourceVersions: maps.Clone(s.versions),
	}
}

// take applies a response and returns the answer to it.
func (c *Client) take(r response) *discovery.DeltaDiscoveryRequest {
	answer := &discovery.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()}
	s := c.subscription(r.GetTypeUrl())
	if s == nil {
		// Acknowledged as the reference does: the server would only send it again.
		c.cfg.Logger.Error("xds response of a type not asked for", "type", r.GetTypeUrl())
		return answer
	}
	size := 0
	for _, res := range r.GetResources() {
		size += len(res.GetResource().GetValue())
	}
	c.cfg.Observer.Message(s.url, size)

	s.leftOut = false
	rejected := s.apply(r)
	s.record(r, rejected)
	if len(rejected) > 0 {
		text := describe(rejected)
		c.cfg.Logger.Warn("xds resources rejected", "type", s.url, "count", len(rejected), "error", text)
		answer.ErrorDetail = &status.Status{Message: text}
		return answer
	}
	c.cfg.Logger.Debug("xds response taken", "type", s.url, "resources", len(r.GetResources()), "removed", len(r.GetRemovedResources()))
	c.acknowledged(s)
	return answer
}
