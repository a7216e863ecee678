package gatekey

import (
	"fmt"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/status"
)

const domain = "gatekey"

// AccessDeniedError is the error that Require returns for a denial.
type AccessDeniedError struct {
	Decision *Decision
}

// Error returns the reason and the message of the decision. It holds no secret.
func (e *AccessDeniedError) Error() string {
	reason := strings.TrimPrefix(e.Decision.GetReason().String(), "REASON_")
	return fmt.Sprintf("gatekey: denied: %s (%s)", e.Decision.GetMessage(), reason)
}

// Reason returns the stable reason of an error of Gatekey, such as TOKEN_INVALID. It is empty if the error did not come
// from Gatekey itself. status.Code returns the code of an error, and status.Convert its other details.
func Reason(err error) string {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.GetDomain() == domain {
			return info.GetReason()
		}
	}
	return ""
}
