package gatekey_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"gatekey.example/gatekey"
	"gatekey.example/gatekey/gatekeyv1"
)

// server responds over the network as a test sets it up, and records the requests.
type server struct {
	gatekeyv1.UnimplementedCheckServiceServer
	gatekeyv1.UnimplementedApiKeyServiceServer

	address string
	grpc    *grpc.Server
	// failures are the responses to the first attempts.
	failures []error
	batch    *gatekeyv1.BatchCheckResponse

	mutex    sync.Mutex
	attempts []attempt
}

type attempt struct {
	metadata  metadata.MD
	request   any
	remaining time.Duration
}

func start(t *testing.T, address string, opts ...grpc.ServerOption) *server {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{address: listener.Addr().String()}
	s.grpc = grpc.NewServer(append(opts, grpc.UnaryInterceptor(s.intercept))...)
	gatekeyv1.RegisterCheckServiceServer(s.grpc, s)
	gatekeyv1.RegisterApiKeyServiceServer(s.grpc, s)
	go func() { _ = s.grpc.Serve(listener) }()
	t.Cleanup(s.grpc.Stop)
	return s
}

func (s *server) intercept(
	ctx context.Context, request any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler,
) (any, error) {
	now := attempt{request: request}
	now.metadata, _ = metadata.FromIncomingContext(ctx)
	if deadline, has := ctx.Deadline(); has {
		now.remaining = time.Until(deadline)
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.attempts = append(s.attempts, now)
	if number := len(s.attempts); number <= len(s.failures) {
		return nil, s.failures[number-1]
	}
	return handle(ctx, request)
}

func (s *server) Check(_ context.Context, request *gatekeyv1.CheckRequest) (*gatekeyv1.CheckResponse, error) {
	if request.GetAction() == "read" {
		return &gatekeyv1.CheckResponse{Allowed: true, Reason: gatekeyv1.CheckResponse_REASON_ALLOWED}, nil
	}
	return &gatekeyv1.CheckResponse{
		Reason:  gatekeyv1.CheckResponse_REASON_KEY_REVOKED,
		Message: "the key was revoked",
	}, nil
}

func (s *server) BatchCheck(context.Context, *gatekeyv1.BatchCheckRequest) (*gatekeyv1.BatchCheckResponse, error) {
	return s.batch, nil
}

func (s *server) CreateApiKey(
	context.Context, *gatekeyv1.CreateApiKeyRequest,
) (*gatekeyv1.CreateApiKeyResponse, error) {
	return &gatekeyv1.CreateApiKeyResponse{}, nil
}

func connect(t *testing.T, address string, opts ...gatekey.Option) *gatekey.Client {
	t.Helper()
	client, err := gatekey.New(address, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func plain(t *testing.T, s *server) *gatekey.Client {
	t.Helper()
	return connect(t, s.address, gatekey.WithPlaintext(), gatekey.WithToken("gk_token"))
}

func TestCheckAsksWhatItWasAsked(t *testing.T) {
	s := start(t, "127.0.0.1:0")
	client := plain(t, s)
	decision, err := client.Check(t.Context(), "k", "links/abc", "read",
		gatekey.InTenant(""), gatekey.OfProduct("heyoo"), gatekey.AtRevision(7))
	if err != nil || !decision.GetAllowed() {
		t.Fatal(decision, err)
	}
	request := s.attempts[0].request.(*gatekeyv1.CheckRequest)
	if request.GetKey() != "k" || request.GetResource() != "links/abc" || request.GetAction() != "read" ||
		request.GetProduct() != "heyoo" || request.GetMinRevision() != 7 {
		t.Error(request)
	}
	if request.Tenant == nil || *request.Tenant != "" {
		t.Error("an empty tenant was not sent as one")
	}
	if _, err := client.Check(t.Context(), "k", "links/abc", "read"); err != nil {
		t.Fatal(err)
	}
	if request := s.attempts[1].request.(*gatekeyv1.CheckRequest); request.Tenant != nil || request.Product != nil {
		t.Error(request)
	}
}

func TestRequireAnswersDenialsAsErrors(t *testing.T) {
	s := start(t, "127.0.0.1:0")
	client := plain(t, s)
	if decision, err := client.Require(t.Context(), "k", "links", "read"); err != nil || !decision.GetAllowed() {
		t.Fatal(decision, err)
	}
	decision, err := client.Require(t.Context(), "k", "links", "write")
	var denied *gatekey.AccessDeniedError
	if !errors.As(err, &denied) || decision != nil {
		t.Fatal(decision, err)
	}
	if denied.Decision.GetReason() != gatekeyv1.CheckResponse_REASON_KEY_REVOKED ||
		err.Error() != "gatekey: denied: the key was revoked (KEY_REVOKED)" {
		t.Error(err)
	}
	s.failures = []error{nil, nil, status.Error(codes.Internal, "no")}
	if _, err := client.Require(t.Context(), "k", "links", "read"); status.Code(err) != codes.Internal {
		t.Error(err)
	}
}

func TestBatchCheckAnswersEachByItself(t *testing.T) {
	s := start(t, "127.0.0.1:0")
	s.batch = &gatekeyv1.BatchCheckResponse{Results: []*gatekeyv1.BatchCheckResult{
		{Result: &gatekeyv1.BatchCheckResult_Response{Response: &gatekeyv1.CheckResponse{Allowed: true}}},
		{Result: &gatekeyv1.BatchCheckResult_Error{Error: &gatekeyv1.CheckError{
			Code: int32(codes.InvalidArgument), Reason: "ID_REQUIRED", Message: "empty", Field: "tenant",
		}}},
		{},
	}}
	client := plain(t, s)
	check := gatekey.NewCheck("k", "links", "read")
	results, err := client.BatchCheck(t.Context(), check, check, check)
	if err != nil || len(results) != 3 {
		t.Fatal(results, err)
	}
	if !results[0].Decision.GetAllowed() || results[0].Err != nil {
		t.Error(results[0])
	}
	problem := status.Convert(results[1].Err)
	if results[1].Decision.GetAllowed() || problem.Code() != codes.InvalidArgument || problem.Message() != "empty" ||
		gatekey.Reason(results[1].Err) != "ID_REQUIRED" {
		t.Error(results[1])
	}
	violations := problem.Details()[1].(*errdetails.BadRequest).GetFieldViolations()
	if len(violations) != 1 || violations[0].GetField() != "tenant" {
		t.Error(violations)
	}
	if results[2].Decision.GetAllowed() || status.Code(results[2].Err) != codes.Internal {
		t.Error(results[2])
	}
	if results, err := client.BatchCheck(t.Context(), check); status.Code(err) != codes.Internal || results != nil {
		t.Error("an answer to another number of questions was taken:", results, err)
	}
}

func TestCallsHaveADeadline(t *testing.T) {
	s := start(t, "127.0.0.1:0")
	check := func(ctx context.Context, client *gatekey.Client) time.Duration {
		if _, err := client.Check(ctx, "k", "links", "read"); err != nil {
			t.Fatal(err)
		}
		return s.attempts[len(s.attempts)-1].remaining
	}
	client := plain(t, s)
	if left := check(t.Context(), client); left <= 0 || left > gatekey.DefaultTimeout {
		t.Error("by default:", left)
	}
	longer := connect(t, s.address, gatekey.WithPlaintext(), gatekey.WithToken("t"), gatekey.WithTimeout(time.Hour))
	if left := check(t.Context(), longer); left <= gatekey.DefaultTimeout || left > time.Hour {
		t.Error("by WithTimeout:", left)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if left := check(ctx, client); left <= gatekey.DefaultTimeout || left > time.Minute {
		t.Error("by the context:", left)
	}
}

func TestOnlyWhatWasNotDoneIsRetried(t *testing.T) {
	unavailable := status.Error(codes.Unavailable, "later")
	for code := codes.Canceled; code <= codes.Unauthenticated; code++ {
		s := start(t, "127.0.0.1:0")
		s.failures = []error{status.Error(code, "no"), unavailable}
		_, err := plain(t, s).Check(t.Context(), "k", "links", "read")
		if code == codes.Unavailable || code == codes.Canceled {
			if err != nil || len(s.attempts) != 3 {
				t.Error(code, err, len(s.attempts))
			}
		} else if status.Code(err) != code || len(s.attempts) != 1 {
			t.Error(code, err, len(s.attempts))
		}
	}
}

func TestWhatTheCallerCancelsIsNotRetried(t *testing.T) {
	s := start(t, "127.0.0.1:0")
	for range 100 {
		s.failures = append(s.failures, status.Error(codes.Canceled, "it stops"))
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	time.AfterFunc(50*time.Millisecond, cancel)
	begun := time.Now()
	_, err := plain(t, s).Check(ctx, "k", "links", "read")
	if status.Code(err) != codes.Canceled || time.Since(begun) > time.Second {
		t.Error(err)
	}
	time.Sleep(200 * time.Millisecond)
	if len(s.attempts) > 2 {
		t.Error(len(s.attempts), "attempts")
	}
}

func TestRetriesEndWithTheDeadline(t *testing.T) {
	s := start(t, "127.0.0.1:0")
	for range 100 {
		s.failures = append(s.failures, status.Error(codes.Unavailable, "later"))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := plain(t, s).Check(ctx, "k", "links", "read")
	if !slices.Contains([]codes.Code{codes.Unavailable, codes.DeadlineExceeded}, status.Code(err)) {
		t.Error(err)
	}
	if len(s.attempts) > 2 {
		t.Error(len(s.attempts), "attempts")
	}
}

func TestRetriesPauseWhileMuchFails(t *testing.T) {
	const calls = 400
	s := start(t, "127.0.0.1:0")
	for range calls * 5 {
		s.failures = append(s.failures, status.Error(codes.Unavailable, "later"))
	}
	client := plain(t, s)
	var group sync.WaitGroup
	for range calls {
		group.Go(func() {
			if _, err := client.Check(t.Context(), "k", "links", "read"); status.Code(err) != codes.Unavailable {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if len(s.attempts) <= calls || len(s.attempts) >= calls*3 {
		t.Error(len(s.attempts), "attempts")
	}
}

func TestARestartedServerIsFoundAgain(t *testing.T) {
	s := start(t, "127.0.0.1:0")
	client := plain(t, s)
	for range 3 {
		if _, err := client.Check(t.Context(), "k", "links", "read"); err != nil {
			t.Fatal(err)
		}
		s.grpc.Stop()
		s = start(t, s.address)
	}
}

func TestTheTokenIsPresented(t *testing.T) {
	s := start(t, "127.0.0.1:0")
	presented := func(client *gatekey.Client) string {
		if _, err := client.Check(t.Context(), "k", "links", "read"); err != nil {
			t.Fatal(err)
		}
		return strings.Join(s.attempts[len(s.attempts)-1].metadata["authorization"], ", ")
	}
	t.Setenv(gatekey.TokenVariable, "gk_environment\n")
	if got := presented(connect(t, s.address, gatekey.WithPlaintext())); got != "Bearer gk_environment" {
		t.Error(got)
	}
	if got := presented(plain(t, s)); got != "Bearer gk_token" {
		t.Error(got)
	}
	tokens := []string{"gk_first", "gk_second"}
	rotating := connect(t, s.address, gatekey.WithPlaintext(),
		gatekey.WithTokenSource(func(context.Context) (string, error) { return tokens[0], nil }))
	if got := presented(rotating); got != "Bearer gk_first" {
		t.Error(got)
	}
	tokens = tokens[1:]
	if got := presented(rotating); got != "Bearer gk_second" {
		t.Error(got)
	}
}

func TestWhatIsAroundATokenIsLeftAway(t *testing.T) {
	s := start(t, "127.0.0.1:0")
	for _, around := range []string{"%s\n", "\ufeff%s", "\ufeff %s\r\n", " \t%s\v\f"} {
		text := strings.ReplaceAll(around, "%s", "gk_token")
		t.Setenv(gatekey.TokenVariable, text)
		for _, opts := range [][]gatekey.Option{
			nil,
			{gatekey.WithToken(text)},
			{gatekey.WithTokenSource(func(context.Context) (string, error) { return text, nil })},
		} {
			client := connect(t, s.address, append(opts, gatekey.WithPlaintext())...)
			if _, err := client.Check(t.Context(), "k", "links", "read"); err != nil {
				t.Fatal(err)
			}
			if got := s.attempts[len(s.attempts)-1].metadata["authorization"]; !slices.Equal(got, []string{"Bearer gk_token"}) {
				t.Error(got)
			}
		}
	}
}

func TestWhatIsLeftInATokenIsRefused(t *testing.T) {
	s := start(t, "127.0.0.1:0")
	for _, text := range []string{"gk_secret\u00a0", "\u200bgk_secret", "gk_secret and", "gk_secret\ngk_secret", "gk_secret\u00e9", "\n", "\x7fgk_secret"} {
		t.Setenv(gatekey.TokenVariable, text)
		_, byVariable := gatekey.New(s.address, gatekey.WithPlaintext())
		_, byOption := gatekey.New(s.address, gatekey.WithPlaintext(), gatekey.WithToken(text))
		client := connect(t, s.address, gatekey.WithPlaintext(),
			gatekey.WithTokenSource(func(context.Context) (string, error) { return text, nil }))
		_, byCall := client.Check(t.Context(), "k", "links", "read")
		for source, err := range map[string]error{gatekey.TokenVariable: byVariable, "WithToken": byOption, "the token source": byCall} {
			if err == nil || !strings.Contains(err.Error(), source+": ") || strings.Contains(err.Error(), "gk_secret") {
				t.Errorf("%q: %v", text, err)
			}
		}
	}
	if len(s.attempts) > 0 {
		t.Error("the server was asked")
	}
}

func TestTextThatIsNotUTF8IsNoID(t *testing.T) {
	var wrong *gatekey.PathError
	if path, err := gatekey.Path("shipments", "\xff"); !errors.As(err, &wrong) || path != "" {
		t.Error(path, err)
	}
}

func TestTheCheckConfigIsThatOfTheProduct(t *testing.T) {
	s := start(t, "127.0.0.1:0")
	client := plain(t, s)
	for product, name := range map[string]string{"": "products/-/checkConfig", "heyoo": "products/heyoo/checkConfig"} {
		if _, err := client.CheckConfig(t.Context(), product); status.Code(err) != codes.Unimplemented {
			t.Fatal(err)
		}
		if got := s.attempts[len(s.attempts)-1].request.(*gatekeyv1.GetCheckConfigRequest).GetName(); got != name {
			t.Error(got)
		}
	}
}

func TestWithoutATokenNothingIsAsked(t *testing.T) {
	s := start(t, "127.0.0.1:0")
	t.Setenv(gatekey.TokenVariable, "")
	if _, err := gatekey.New(s.address, gatekey.WithPlaintext()); err == nil {
		t.Error("a client without a token was made")
	}
	for _, source := range []gatekey.TokenSource{
		func(context.Context) (string, error) { return "", nil },
		func(context.Context) (string, error) { return "gk_secret\x00", nil },
		func(context.Context) (string, error) { return "gk_secret and more", nil },
		func(context.Context) (string, error) { return "gk_secret", errors.New("the vault is away") },
	} {
		client := connect(t, s.address, gatekey.WithPlaintext(), gatekey.WithTokenSource(source))
		_, err := client.Check(t.Context(), "k", "links", "read")
		if status.Code(err) != codes.Unauthenticated || strings.Contains(err.Error(), "gk_secret") {
			t.Error(err)
		}
	}
	if len(s.attempts) > 0 {
		t.Error("the server was asked")
	}
}

func TestARetriedMutationKeepsItsRequestID(t *testing.T) {
	s := start(t, "127.0.0.1:0")
	s.failures = []error{status.Error(codes.Unavailable, "later")}
	client := plain(t, s)
	request := &gatekeyv1.CreateApiKeyRequest{Parent: "products/heyoo/tenants/acme"}
	chosen := &gatekeyv1.CreateApiKeyRequest{RequestId: "mine"}
	for _, request := range []*gatekeyv1.CreateApiKeyRequest{request, request, chosen} {
		if _, err := client.APIKeys.CreateApiKey(t.Context(), request); err != nil {
			t.Fatal(err)
		}
	}
	var ids []string
	for _, attempt := range s.attempts {
		ids = append(ids, attempt.request.(*gatekeyv1.CreateApiKeyRequest).GetRequestId())
	}
	uuid := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	if len(ids) != 4 || !uuid.MatchString(ids[0]) || ids[0] != ids[1] || ids[1] == ids[2] || ids[3] != "mine" {
		t.Error(ids)
	}
	if request.GetRequestId() != "" {
		t.Error("the caller's request was changed")
	}
}

func TestTheActorIsNamed(t *testing.T) {
	s := start(t, "127.0.0.1:0")
	client := plain(t, s)
	// The server must refuse a lost name.
	for _, actor := range []string{"products/heyoo/tenants/acme/members/u", ""} {
		ctx := gatekey.WithActor(t.Context(), actor)
		if _, err := client.APIKeys.CreateApiKey(ctx, &gatekeyv1.CreateApiKeyRequest{}); err != nil {
			t.Fatal(err)
		}
		if got := s.attempts[len(s.attempts)-1].metadata["gatekey-actor"]; !slices.Equal(got, []string{actor}) {
			t.Error(got)
		}
	}
}

func TestTheReasonIsOurs(t *testing.T) {
	foreign, err := status.New(codes.NotFound, "no").WithDetails(&errdetails.ErrorInfo{Reason: "OTHER", Domain: "other"})
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range []error{nil, errors.New("no"), status.Error(codes.NotFound, "no"), foreign.Err()} {
		if reason := gatekey.Reason(problem); reason != "" {
			t.Error(problem, reason)
		}
	}
}

func TestConnectionsAreEncrypted(t *testing.T) {
	certificate, pool := selfSigned(t)
	config := &tls.Config{Certificates: []tls.Certificate{certificate}, ClientCAs: pool, ClientAuth: tls.VerifyClientCertIfGiven}
	s := start(t, "127.0.0.1:0", grpc.Creds(credentials.NewTLS(config)))
	trusting := connect(t, s.address, gatekey.WithToken("gk_token"), gatekey.WithTLS(&tls.Config{RootCAs: pool}))
	if _, err := trusting.Check(t.Context(), "k", "links", "read"); err != nil {
		t.Error(err)
	}
	t.Setenv(gatekey.TokenVariable, "")
	mutual := connect(t, s.address, gatekey.WithTLS(&tls.Config{RootCAs: pool, Certificates: []tls.Certificate{certificate}}))
	if _, err := mutual.Check(t.Context(), "k", "links", "read"); err != nil {
		t.Error(err)
	}
	if len(s.attempts) != 2 || s.attempts[1].metadata["authorization"] != nil {
		t.Error(s.attempts)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	stranger := connect(t, s.address, gatekey.WithToken("gk_token"))
	if _, err := stranger.Check(ctx, "k", "links", "read"); err == nil || len(s.attempts) != 2 {
		t.Error("a server that nobody vouches for was trusted:", err)
	}
}

func TestContradictionsAreRefused(t *testing.T) {
	for _, opts := range [][]gatekey.Option{
		{gatekey.WithPlaintext(), gatekey.WithTLS(&tls.Config{})},
		{gatekey.WithTimeout(0)},
	} {
		if _, err := gatekey.New("localhost:50051", append(opts, gatekey.WithToken("t"))...); err == nil {
			t.Error("a contradiction was taken")
		}
	}
}

func selfSigned(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		NotAfter:              time.Now().Add(time.Hour),
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}
