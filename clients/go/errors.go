package gatekey

import (
	"fmt"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/status"
)

const domain = "gatekey"

// AccessDeniedError is the answer of Require to a denial.
type AccessDeniedError struct {
	Decision *Decision
}

// Error holds the reason and the sentence of the decision; it holds no secret.
func (e *AccessDeniedError) Error() string {
	reason := strings.TrimPrefix(e.Decision.GetReason().String(), "REASON_")
	return fmt.Sprintf("gatekey: denied: %s (%s)", e.Decision.GetMessage(), reason)
}

// Reason is the stable reason of an error of Gatekey, such as TOKEN_INVALID, or empty where the error did not come
// from Gatekey itself. The code of an error is told by status.Code, its other details by status.Convert.
func Reason(err error) string {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.GetDomain() == domain {
			return info.GetReason()
		}
	}
	return ""
}
