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
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
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
	// Paths are the segments of each.
	Paths [][]string `json:"paths"`
	Load  *load      `json:"load"`
}

// load is calls to be made without a pause, until a file is there.
type load struct {
	Addresses []string `json:"addresses"`
	Token     string   `json:"token"`
	Until     string   `json:"until"`
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
	// Paths are null where there is none.
	Paths    []*string `json:"paths"`
	Done     int       `json:"done"`
	Failures []string  `json:"failures"`
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
	result := output{
		Alone: make([]answer, count), Together: make([]answer, count), Paths: make([]*string, len(given.Paths)),
	}
	for i, segments := range given.Paths {
		if path, err := gatekey.Path(segments...); err == nil {
			result.Paths[i] = &path
		}
	}
	if given.Load != nil {
		if err := given.Load.run(ctx, &result); err != nil {
			return output{}, err
		}
	}
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

func (l *load) run(ctx context.Context, result *output) error {
	servers := manual.NewBuilderWithScheme("servers")
	var state resolver.State
	for _, address := range l.Addresses {
		state.Addresses = append(state.Addresses, resolver.Address{Addr: address})
	}
	servers.InitialState(state)
	client, err := gatekey.New("servers:///gatekey", gatekey.WithPlaintext(), gatekey.WithToken(l.Token),
		gatekey.WithDialOptions(grpc.WithResolvers(servers)))
	if err != nil {
		return err
	}
	defer client.Close()
	check := gatekey.NewCheck("x", "links", "read")
	calls := []func() error{
		func() error { _, err := client.Checks.Check(ctx, check); return err },
		func() error { _, err := client.BatchCheck(ctx, check, check); return err },
		func() error {
			_, err := client.Products.GetProduct(ctx, &gatekeyv1.GetProductRequest{Name: "products/gatekey"})
			return err
		},
	}
	var mutex sync.Mutex
	var group sync.WaitGroup
	for number := range 12 {
		group.Go(func() {
			for {
				if _, err := os.Stat(l.Until); err == nil {
					return
				}
				err := calls[number%len(calls)]()
				mutex.Lock()
				if err != nil {
					result.Failures = append(result.Failures, err.Error())
				} else {
					result.Done++
				}
				mutex.Unlock()
			}
		})
	}
	group.Wait()
	return nil
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
