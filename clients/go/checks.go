package gatekey

import (
	"context"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	gatekeyv1 "gatekey.example/gatekey/gatekeyv1"
)

// Decision says whether the action is allowed, why, what was missing, and whom it is about. Only Allowed is permission.
type Decision = gatekeyv1.CheckResponse

// CheckOption narrows a check.
type CheckOption func(*gatekeyv1.CheckRequest)

// InTenant names the tenant that the request is about: a key of another tenant is denied. An empty id is an error: a
// lost id must not match every tenant.
func InTenant(id string) CheckOption {
	return func(r *gatekeyv1.CheckRequest) { r.Tenant = &id }
}

// OfProduct names the product that asks: a key of another product is unknown. It is for callers whose token may check
// several products. An empty id is an error.
func OfProduct(id string) CheckOption {
	return func(r *gatekeyv1.CheckRequest) { r.Product = &id }
}

// AtRevision requires a decision that is right as of this revision or a later one.
func AtRevision(revision int64) CheckOption {
	return func(r *gatekeyv1.CheckRequest) { r.MinRevision = revision }
}

// NewCheck makes a question for BatchCheck.
func NewCheck(key, resource, action string, opts ...CheckOption) *gatekeyv1.CheckRequest {
	request := &gatekeyv1.CheckRequest{Key: key, Resource: resource, Action: action}
	for _, option := range opts {
		option(request)
	}
	return request
}

// Check returns the decision whether the holder of a key may do an action on a resource. A denial is not an error.
func (c *Client) Check(ctx context.Context, key, resource, action string, opts ...CheckOption) (*Decision, error) {
	return c.Checks.Check(ctx, NewCheck(key, resource, action, opts...))
}

// Require checks as Check does, and returns a denial as an *AccessDeniedError.
func (c *Client) Require(ctx context.Context, key, resource, action string, opts ...CheckOption) (*Decision, error) {
	decision, err := c.Check(ctx, key, resource, action, opts...)
	if err != nil {
		return nil, err
	}
	if !decision.GetAllowed() {
		return nil, &AccessDeniedError{Decision: decision}
	}
	return decision, nil
}

// CheckConfig returns the resources and actions of a product that can be checked, and where holders present their keys.
// Call it when a service starts. An error means that its token cannot check the product's keys; all of them would be
// unknown. An empty product stands for the only one that the token may check.
func (c *Client) CheckConfig(ctx context.Context, product string) (*gatekeyv1.CheckConfig, error) {
	if product == "" {
		product = "-"
	}
	name := "products/" + product + "/checkConfig"
	return c.Checks.GetCheckConfig(ctx, &gatekeyv1.GetCheckConfigRequest{Name: name})
}

// Result is the result of one question of a batch. A non-nil Err means that no decision was made. Decision is then nil,
// and its GetAllowed is false.
type Result struct {
	Decision *Decision
	Err      error
}

// BatchCheck returns the results of up to 1000 questions, in their order. The error is about the batch as a whole.
func (c *Client) BatchCheck(ctx context.Context, checks ...*gatekeyv1.CheckRequest) ([]Result, error) {
	answer, err := c.Checks.BatchCheck(ctx, &gatekeyv1.BatchCheckRequest{Checks: checks})
	if err != nil {
		return nil, err
	}
	if len(answer.GetResults()) != len(checks) {
		return nil, status.Errorf(codes.Internal, "%d checks got %d answers", len(checks), len(answer.GetResults()))
	}
	results := make([]Result, len(checks))
	for i, result := range answer.GetResults() {
		if decision := result.GetResponse(); decision != nil {
			results[i].Decision = decision
		} else {
			results[i].Err = errorOf(result.GetError())
		}
	}
	return results, nil
}

// errorOf returns the error that Check would have failed with.
func errorOf(problem *gatekeyv1.CheckError) error {
	code := codes.Code(problem.GetCode())
	if code == codes.OK {
		return status.Error(codes.Internal, "the answer holds neither a decision nor an error")
	}
	made := status.New(code, problem.GetMessage())
	if problem.GetReason() == "" {
		return made.Err()
	}
	detailed, err := made.WithDetails(&errdetails.ErrorInfo{Reason: problem.GetReason(), Domain: domain})
	if err == nil && problem.GetField() != "" {
		detailed, err = detailed.WithDetails(&errdetails.BadRequest{
			FieldViolations: []*errdetails.BadRequest_FieldViolation{{
				Field: problem.GetField(), Reason: problem.GetReason(), Description: problem.GetMessage(),
			}},
		})
	}
	if err != nil {
		return made.Err()
	}
	return detailed.Err()
}
