package gatekey_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log"
	"net/http"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"gatekey.example/gatekey"
	"gatekey.example/gatekey/gatekeyv1"
)

func ExampleWithTLS() {
	ca, err := os.ReadFile("ca.pem")
	if err != nil {
		log.Fatal(err)
	}
	config := &tls.Config{RootCAs: x509.NewCertPool()}
	config.RootCAs.AppendCertsFromPEM(ca)

	// Only for mutual TLS.
	own, err := tls.LoadX509KeyPair("client.pem", "client.key")
	if err != nil {
		log.Fatal(err)
	}
	config.Certificates = []tls.Certificate{own}

	client, err := gatekey.New("gatekey.internal:50051", gatekey.WithTLS(config))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
}

func ExampleWithTokenSource() {
	// A file that something else keeps up to date.
	token := func(context.Context) (string, error) {
		token, err := os.ReadFile("/run/secrets/gatekey")
		return string(token), err
	}
	client, err := gatekey.New("gatekey.internal:50051", gatekey.WithTokenSource(token))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
}

func ExampleReason() {
	client, err := gatekey.New("gatekey.internal:50051", gatekey.WithToken("gk_…"))
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()

	decision, err := client.Check(ctx, "hey_…", "campaigns/spring", "write")
	switch {
	case err == nil && decision.GetAllowed():
		// Go on.
	case err == nil:
		log.Println("denied:", strings.TrimPrefix(decision.GetReason().String(), "REASON_"), decision.GetMessage())
	case status.Code(err) == codes.Unavailable || status.Code(err) == codes.DeadlineExceeded:
		log.Println("deny, and look after Gatekey:", err)
	default:
		log.Println("deny, and mend the caller:", gatekey.Reason(err), err)
	}
}

func ExampleWithActor() {
	client, err := gatekey.New("gatekey.internal:50051")
	if err != nil {
		log.Fatal(err)
	}
	ctx := gatekey.WithActor(context.Background(), "products/heyoo/tenants/acme/members/u_42")
	_, err = client.APIKeys.RevokeApiKey(ctx, &gatekeyv1.RevokeApiKeyRequest{
		Name: "products/heyoo/tenants/acme/apiKeys/key_…", Reason: "leaked",
	})
	if err != nil {
		log.Fatal(err)
	}
}

func ExamplePath() {
	client, err := gatekey.New("gatekey.internal:50051")
	if err != nil {
		log.Fatal(err)
	}
	serve := func(http.ResponseWriter, *http.Request) {}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /shipments/{id}", func(w http.ResponseWriter, r *http.Request) {
		shipment, err := gatekey.Path("shipments", r.PathValue("id"))
		if err != nil {
			http.NotFound(w, r)
			return
		}
		key := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		if _, err := client.Require(r.Context(), key, shipment, "read"); err != nil {
			http.Error(w, "forbidden", http.StatusForbidden)
			return
		}
		serve(w, r)
	})
}

func ExampleClient_CheckConfig() {
	ctx := context.Background()
	client, err := gatekey.New("gatekey.internal:50051")
	if err != nil {
		log.Fatal(err)
	}
	config, err := client.CheckConfig(ctx, "heyoo")
	if err != nil {
		log.Fatal("the service token cannot check keys of heyoo: ", err)
	}
	log.Println("keys come in the header", config.GetCredential().GetHeader())
}
