// Quickstart makes a key and asks what it may do: `GATEKEY_TOKEN=gk_… go run ./quickstart 127.0.0.1:50051`.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"gatekey.example/gatekey"
	"gatekey.example/gatekey/gatekeyv1"
)

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: quickstart HOST:PORT")
	}
	// One client for the whole program. The token comes from GATEKEY_TOKEN.
	client, err := gatekey.New(os.Args[1], gatekey.WithPlaintext())
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	if err := run(context.Background(), client); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, client *gatekey.Client) error {
	secret, name, err := makeKey(ctx, client)
	if err != nil {
		return err
	}

	campaign, err := gatekey.Path("campaigns", "spring") // One id stays one segment, whatever it holds.
	if err != nil {
		return err // What was sent is no id: deny.
	}
	decision, err := client.Check(ctx, secret, campaign, "write", gatekey.InTenant("go-quickstart"))
	if err != nil {
		return err // No decision was made: deny.
	}
	fmt.Println(decision.GetAllowed(), decision.GetReason(), decision.GetRole())

	var denied *gatekey.AccessDeniedError
	if _, err := client.Require(ctx, secret, "tags", "write"); errors.As(err, &denied) {
		for _, missing := range denied.Decision.GetMissingPermissions() {
			fmt.Println("missing:", missing.GetAction(), "on", missing.GetResource())
		}
	} else if err != nil {
		return err
	}

	results, err := client.BatchCheck(ctx,
		gatekey.NewCheck(secret, "campaigns", "read"),
		gatekey.NewCheck(secret, "campaigns//", "read"),
	)
	if err != nil {
		return err
	}
	for _, result := range results {
		fmt.Println(result.Decision.GetAllowed(), gatekey.Reason(result.Err))
	}

	_, err = client.APIKeys.DeleteApiKey(ctx, &gatekeyv1.DeleteApiKeyRequest{Name: name})
	return err
}

// makeKey makes a tenant and a member, unless they are there, and a key that may read and write campaigns.
func makeKey(ctx context.Context, client *gatekey.Client) (secret, name string, err error) {
	const product, tenant = "products/heyoo", "products/heyoo/tenants/go-quickstart"
	_, err = client.Tenants.CreateTenant(ctx, &gatekeyv1.CreateTenantRequest{Parent: product, TenantId: "go-quickstart"})
	if err != nil && status.Code(err) != codes.AlreadyExists {
		return "", "", err
	}
	_, err = client.Members.AddMember(ctx, &gatekeyv1.AddMemberRequest{
		Parent: tenant, MemberId: "u_42", Member: &gatekeyv1.Member{Role: "member"},
	})
	if err != nil && status.Code(err) != codes.AlreadyExists {
		return "", "", err
	}
	created, err := client.APIKeys.CreateApiKey(ctx, &gatekeyv1.CreateApiKeyRequest{
		Parent: tenant,
		ApiKey: &gatekeyv1.ApiKey{
			DisplayName: "Quickstart",
			Owner:       tenant + "/members/u_42",
			Mode:        gatekeyv1.AccessMode_ACCESS_MODE_RESTRICTED,
			Grants:      []*gatekeyv1.Grant{{Resource: "campaigns", Actions: []string{"read", "write"}}},
		},
	})
	return created.GetSecret(), created.GetApiKey().GetName(), err
}
