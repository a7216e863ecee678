package gatekey

import (
	"context"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// around lists the characters that editors, shells and mounted files put around a secret: ASCII white space, and a byte
// order mark.
const around = " \t\r\n\v\f\ufeff"

// clean returns the token without the characters around it. The error names where the token came from, but does not
// hold it.
func clean(token, source string) (string, error) {
	token = strings.Trim(token, around)
	if token == "" {
		return "", fmt.Errorf("%s: there is no service token in it", source)
	}
	for i, r := range token {
		// The transport would print a token that it cannot send.
		if r <= ' ' || r > '~' {
			return "", fmt.Errorf("%s: what it holds is not a token: byte %d of %d can be in none", source, i+1, len(token))
		}
	}
	return token, nil
}

// bearer presents the service token with every attempt at a call.
type bearer struct {
	token  TokenSource
	secure bool
}

func (b bearer) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	token, err := b.token(ctx)
	if err != nil {
		return nil, status.Errorf(codes.Unauthenticated, "there is no service token: %v", err)
	}
	token, err = clean(token, "the token source")
	if err != nil {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	return map[string]string{"authorization": "Bearer " + token}, nil
}

func (b bearer) RequireTransportSecurity() bool {
	return b.secure
}
