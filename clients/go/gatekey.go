// Package gatekey asks a Gatekey server whether the holder of an API key may do an action on a resource. It also
// administers products, tenants, members and keys.
//
// A denial is a decision, not an error. An error means that no decision was made. Treat it as a denial.
package gatekey

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	gatekeyv1 "gatekey.example/gatekey/gatekeyv1"
)

const (
	// DefaultTimeout is the time limit of a call, including its retries, if its context has no deadline.
	DefaultTimeout = 5 * time.Second

	// TokenVariable names the environment variable with the service token of a client without a token option.
	TokenVariable = "GATEKEY_TOKEN"
)

// Any call may be retried: reads change nothing, and mutations carry a request id. A server that stops cancels the
// calls that it has not carried out. A call that this side cancels is not retried.
const serviceConfig = `{
	"loadBalancingConfig": [{"round_robin": {}}],
	"methodConfig": [{
		"name": [{}],
		"retryPolicy": {
			"maxAttempts": 5,
			"initialBackoff": "0.1s",
			"maxBackoff": "1s",
			"backoffMultiplier": 3,
			"retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"]
		}
	}],
	"retryThrottling": {"maxTokens": 1000, "tokenRatio": 0.1}
}`

// Client is one connection to Gatekey, or several if its address stands for several servers. It is safe for concurrent
// use. A program needs one.
type Client struct {
	// The generated stubs. Their calls have the client's token, deadline and retries.
	Checks       gatekeyv1.CheckServiceClient
	Products     gatekeyv1.ProductServiceClient
	Tenants      gatekeyv1.TenantServiceClient
	Members      gatekeyv1.MemberServiceClient
	MachineUsers gatekeyv1.MachineUserServiceClient
	APIKeys      gatekeyv1.ApiKeyServiceClient
	Audit        gatekeyv1.AuditServiceClient

	connection *grpc.ClientConn
}

// TokenSource returns the service token for an attempt at a call. The client calls it every time, so that a token can
// be replaced while the client is in use. It should keep the token rather than fetch it, and end with its context.
type TokenSource func(context.Context) (string, error)

// Option is an option of New.
type Option func(*options)

type options struct {
	token     TokenSource
	fixed     *string
	tls       *tls.Config
	plaintext bool
	timeout   time.Duration
	dial      []grpc.DialOption
}

// WithToken sets the service token. Without it, and without WithTokenSource, the client uses GATEKEY_TOKEN.
func WithToken(token string) Option {
	return func(o *options) { o.token, o.fixed = nil, &token }
}

// WithTokenSource sets a function that returns the service token.
func WithTokenSource(source TokenSource) Option {
	return func(o *options) { o.token, o.fixed = source, nil }
}

// WithTLS sets the trusted authorities and, for mutual TLS, the client's certificate. Without it the client trusts the
// authorities of the system.
func WithTLS(config *tls.Config) Option {
	return func(o *options) { o.tls = config }
}

// WithPlaintext turns TLS off. Whoever can read the connection can take the token and the keys. Use it only for servers
// on the same machine, or where something else encrypts.
func WithPlaintext() Option {
	return func(o *options) { o.plaintext = true }
}

// WithTimeout replaces DefaultTimeout.
func WithTimeout(timeout time.Duration) Option {
	return func(o *options) { o.timeout = timeout }
}

// WithDialOptions adds options of grpc-go, such as interceptors. They come after the client's own.
func WithDialOptions(dial ...grpc.DialOption) Option {
	return func(o *options) { o.dial = append(o.dial, dial...) }
}

// New returns a client of the server at a target of grpc-go, such as "gatekey.internal:50051". It does not wait for a
// connection. The client uses all addresses of a name in turn.
func New(target string, opts ...Option) (*Client, error) {
	settings := options{timeout: DefaultTimeout}
	for _, option := range opts {
		option(&settings)
	}
	if settings.timeout <= 0 {
		return nil, fmt.Errorf("gatekey: the timeout of %v is not above 0", settings.timeout)
	}
	if settings.plaintext && settings.tls != nil {
		return nil, errors.New("gatekey: WithPlaintext and WithTLS exclude each other")
	}
	if err := settings.findToken(); err != nil {
		return nil, err
	}
	connection, err := grpc.NewClient(target, settings.dialOptions()...)
	if err != nil {
		return nil, fmt.Errorf("gatekey: %w", err)
	}
	return &Client{
		Checks:       gatekeyv1.NewCheckServiceClient(connection),
		Products:     gatekeyv1.NewProductServiceClient(connection),
		Tenants:      gatekeyv1.NewTenantServiceClient(connection),
		Members:      gatekeyv1.NewMemberServiceClient(connection),
		MachineUsers: gatekeyv1.NewMachineUserServiceClient(connection),
		APIKeys:      gatekeyv1.NewApiKeyServiceClient(connection),
		Audit:        gatekeyv1.NewAuditServiceClient(connection),
		connection:   connection,
	}, nil
}

// Close ends the connection, and all calls under way.
func (c *Client) Close() error {
	return c.connection.Close()
}

func (o *options) findToken() error {
	if o.token != nil {
		return nil
	}
	given, source := os.Getenv(TokenVariable), TokenVariable
	if o.fixed != nil {
		given, source = *o.fixed, "WithToken"
	}
	// A client certificate can replace the token.
	mutual := o.tls != nil && (len(o.tls.Certificates) > 0 || o.tls.GetClientCertificate != nil)
	if given == "" && o.fixed == nil {
		if mutual {
			return nil
		}
		return fmt.Errorf("gatekey: there is no service token: use WithToken or WithTokenSource, or set %s", TokenVariable)
	}
	token, err := clean(given, source)
	if err != nil {
		return fmt.Errorf("gatekey: %w", err)
	}
	o.token = func(context.Context) (string, error) { return token, nil }
	return nil
}

func (o *options) dialOptions() []grpc.DialOption {
	transport := insecure.NewCredentials()
	if !o.plaintext {
		transport = credentials.NewTLS(o.tls)
	}
	// Find a restarted server soon, but do not overload it.
	reconnect := backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second}
	dial := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: 5 * time.Second}),
		grpc.WithChainUnaryInterceptor(withDeadline(o.timeout), withRequestID),
	}
	if o.token != nil {
		dial = append(dial, grpc.WithPerRPCCredentials(bearer{o.token, !o.plaintext}))
	}
	return append(dial, o.dial...)
}
