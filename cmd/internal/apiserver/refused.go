package apiserver

import (
	"errors"
	"net/http"
	"syscall"
)

// outspoken makes a server that refuses connections an error like any other.
//
// client-go's reflectors know it by its system call's error and try again by themselves: without a word to the handler of
// errors, so that no log says what is missing, and with pauses of up to 30 s in which they do not end when their context does.
type outspoken struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (o outspoken) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := o.next.RoundTrip(r)
	if errors.Is(err, syscall.ECONNREFUSED) {
		err = errors.New(err.Error())
	}
	return resp, err
}

// WrappedRoundTripper implements k8s.io/apimachinery's net.RoundTripperWrapper.
func (o outspoken) WrappedRoundTripper() http.RoundTripper { return o.next }
