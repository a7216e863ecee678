// Conformance reads questions as JSON, asks each alone and all together, and writes the answers as JSON.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"gatekey.example/gatekey"
	"gatekey.example/gatekey/gatekeyv1"
)

// maxBatch is below the server's limit, so that there are several batches.
const maxBatch = 100

type input struct {
	Address string  `json:"address"`
	TLS     *pem    `json:"tls"`
	Cases   []query `json:"cases"`
}

type pem struct {
	CA          string `json:"ca"`
	Certificate string `json:"certificate"`
	Key         string `json:"key"`
}

type query struct {
	Token    string  `json:"token"`
	Key      string  `json:"key"`
	Resource string  `json:"resource"`
	Action   string  `json:"action"`
	Tenant   *string `json:"tenant"`
}

type answer struct {
	Code      codes.Code  `json:"code"`
	Reason    string      `json:"reason"`
	Allowed   bool        `json:"allowed"`
	Missing   [][2]string `json:"missing"`
	Product   string      `json:"product"`
	Tenant    string      `json:"tenant"`
	Principal string      `json:"principal"`
	Role      string      `json:"role"`
	APIKey    string      `json:"api_key"`
	Kind      string      `json:"kind"`
	Expires   bool        `json:"expires"`
}

type output struct {
	Alone    []answer `json:"alone"`
	Together []answer `json:"together"`
}

func main() {
	var given input
	if err := json.NewDecoder(os.Stdin).Decode(&given); err != nil {
		log.Fatal(err)
	}
	result, err := run(given)
	if err != nil {
		log.Fatal(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(result); err != nil {
		log.Fatal(err)
	}
}

func run(given input) (output, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	count := len(given.Cases)
	result := output{make([]answer, count), make([]answer, count)}
	places := map[string][]int{}
	for i, query := range given.Cases {
		places[query.Token] = append(places[query.Token], i)
	}
	for token, group := range places {
		if err := ask(ctx, given, token, group, result); err != nil {
			return output{}, err
		}
	}
	return result, nil
}

// ask puts the questions of one token.
func ask(ctx context.Context, given input, token string, places []int, result output) error {
	transport, err := transportOf(given.TLS)
	if err != nil {
		return err
	}
	options := []gatekey.Option{transport}
	if token != "" {
		options = append(options, gatekey.WithToken(token))
	}
	client, err := gatekey.New(given.Address, options...)
	if err != nil {
		return err
	}
	defer client.Close()
	for len(places) > 0 {
		some := places[:min(maxBatch, len(places))]
		places = places[len(some):]
		var checks []*gatekeyv1.CheckRequest
		for _, place := range some {
			query := given.Cases[place]
			var narrowed []gatekey.CheckOption
			if query.Tenant != nil {
				narrowed = append(narrowed, gatekey.InTenant(*query.Tenant))
			}
			decision, err := client.Check(ctx, query.Key, query.Resource, query.Action, narrowed...)
			result.Alone[place] = answerOf(decision, err)
			checks = append(checks, gatekey.NewCheck(query.Key, query.Resource, query.Action, narrowed...))
		}
		answers, err := client.BatchCheck(ctx, checks...)
		if err != nil {
			return err
		}
		for i, place := range some {
			result.Together[place] = answerOf(answers[i].Decision, answers[i].Err)
		}
	}
	return nil
}

func answerOf(decision *gatekey.Decision, err error) answer {
	if err != nil {
		return answer{Code: status.Code(err), Reason: gatekey.Reason(err), Missing: [][2]string{}, Kind: "UNSPECIFIED"}
	}
	missing := [][2]string{}
	for _, permission := range decision.GetMissingPermissions() {
		missing = append(missing, [2]string{permission.GetResource(), permission.GetAction()})
	}
	return answer{
		Code:      codes.OK,
		Reason:    strings.TrimPrefix(decision.GetReason().String(), "REASON_"),
		Allowed:   decision.GetAllowed(),
		Missing:   missing,
		Product:   decision.GetProduct(),
		Tenant:    decision.GetTenant(),
		Principal: decision.GetPrincipal(),
		Role:      decision.GetRole(),
		APIKey:    decision.GetApiKey(),
		Kind:      strings.TrimPrefix(decision.GetKind().String(), "KEY_KIND_"),
		Expires:   decision.GetExpireTime() != nil,
	}
}

func transportOf(files *pem) (gatekey.Option, error) {
	if files == nil {
		return gatekey.WithPlaintext(), nil
	}
	ca, err := os.ReadFile(files.CA)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{RootCAs: x509.NewCertPool()}
	if !config.RootCAs.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%s holds no certificate", files.CA)
	}
	if files.Certificate != "" {
		own, err := tls.LoadX509KeyPair(files.Certificate, files.Key)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{own}
	}
	return gatekey.WithTLS(config), nil
}
