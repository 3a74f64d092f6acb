package identitytest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"istio.io/api/security/v1alpha1"
)

// CARequest is one request that an IstioCA has seen.
type CARequest struct {
	// CSR is the request for a certificate, its signature checked.
	CSR *x509.CertificateRequest
	// Validity is what the client asked for.
	Validity time.Duration
	// Impersonated is the identity named in the metadata, empty if none was.
	Impersonated string
	// Header is the call's gRPC metadata.
	Header metadata.MD
}

// A CAAnswer replaces the answer of an IstioCA. chain is what the CA would have
// answered: leaf, intermediates, root.
type CAAnswer func(ctx context.Context, request CARequest, chain []string) ([]string, error)

// IstioCA serves istio.v1.auth.IstioCertificateService over TLS on a socket of
// the loopback interface, as istiod does.
type IstioCA struct {
	v1alpha1.UnimplementedIstioCertificateServiceServer

	// Address is host:port to dial; the host is 127.0.0.1.
	Address string
	// RootPEM verifies the server.
	RootPEM []byte

	t  testing.TB
	ca *CA

	mu       sync.Mutex
	requests []CARequest
	answer   CAAnswer
}

// ServerName is in the certificate of each IstioCA, beside 127.0.0.1.
const ServerName = "istiod.istio-system.svc"

// NewIstioCA starts a service that signs with ca. It ends with the test.
func NewIstioCA(t testing.TB, ca *CA) *IstioCA {
	t.Helper()
	front := NewCA(t, "front.example")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &IstioCA{Address: listener.Addr().String(), RootPEM: front.RootPEM(), t: t, ca: ca}
	server := grpc.NewServer(grpc.Creds(credentials.NewServerTLSFromCert(front.ServerCertificate(t, ServerName, net.IPv4(127, 0, 0, 1)))))
	v1alpha1.RegisterIstioCertificateServiceServer(server, s)
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(listener) })
	t.Cleanup(func() {
		server.Stop()
		serving.Wait()
	})
	return s
}

// ServerCertificate issues an ordinary certificate for a TLS server, with a
// host name and an address.
func (ca *CA) ServerCertificate(t testing.TB, name string, ip net.IP) *tls.Certificate {
	t.Helper()
	chain, key := ca.Issue(t, "spiffe://"+ca.TrustDomain.String()+"/server", func(c *x509.Certificate) {
		c.URIs, c.DNSNames, c.IPAddresses = nil, []string{name}, []net.IP{ip}
	})
	cert := &tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, c := range chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return cert
}

// Answer makes the service answer through fn from now on; nil restores the
// ordinary answer.
func (s *IstioCA) Answer(fn CAAnswer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = fn
}

// Requests returns what has been asked so far.
func (s *IstioCA) Requests() []CARequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]CARequest(nil), s.requests...)
}

// CreateCertificate serves one call.
func (s *IstioCA) CreateCertificate(ctx context.Context, in *v1alpha1.IstioCertificateRequest) (*v1alpha1.IstioCertificateResponse, error) {
	request, err := readRequest(ctx, in)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	s.mu.Lock()
	s.requests = append(s.requests, request)
	answer := s.answer
	s.mu.Unlock()
	chain, err := s.sign(request)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	if answer != nil {
		if chain, err = answer(ctx, request, chain); err != nil {
			return nil, err
		}
	}
	return &v1alpha1.IstioCertificateResponse{CertChain: chain}, nil
}

func readRequest(ctx context.Context, in *v1alpha1.IstioCertificateRequest) (CARequest, error) {
	block, rest := pem.Decode([]byte(in.GetCsr()))
	if block == nil || block.Type != "CERTIFICATE REQUEST" || strings.TrimSpace(string(rest)) != "" {
		return CARequest{}, errors.New("csr is not one PEM certificate request")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return CARequest{}, err
	}
	if err := csr.CheckSignature(); err != nil {
		return CARequest{}, err
	}
	header, _ := metadata.FromIncomingContext(ctx)
	return CARequest{
		CSR:          csr,
		Validity:     time.Duration(in.GetValidityDuration()) * time.Second,
		Impersonated: in.GetMetadata().GetFields()["ImpersonatedIdentity"].GetStringValue(),
		Header:       header,
	}, nil
}

// sign issues what the request asks for.
func (s *IstioCA) sign(request CARequest) ([]string, error) {
	now := time.Now()
	number, err := newSerial()
	if err != nil {
		return nil, err
	}
	cert, err := signCertificate(&x509.Certificate{
		SerialNumber: number,
		URIs:         request.CSR.URIs,
		NotBefore:    now.Add(-2 * time.Minute), // as istiod does
		NotAfter:     now.Add(request.Validity),
		KeyUsage:     x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, s.ca.Certificate, request.CSR.PublicKey, s.ca.Key)
	if err != nil {
		return nil, err
	}
	chain := []string{string(CertificatesPEM(cert))}
	for _, above := range s.ca.chain {
		chain = append(chain, string(CertificatesPEM(above)))
	}
	return append(chain, string(s.ca.RootPEM())), nil
}
