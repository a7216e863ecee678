package gatekey

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// WithActor makes mutations of this context on behalf of a member or machine user, given by its resource name.
func WithActor(ctx context.Context, name string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "gatekey-actor", name)
}

func withDeadline(timeout time.Duration) grpc.UnaryClientInterceptor {
	return func(
		ctx context.Context, method string, request, reply any,
		connection *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption,
	) error {
		if _, has := ctx.Deadline(); !has {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, timeout)
			defer cancel()
		}
		return invoke(ctx, method, request, reply, connection, opts...)
	}
}

// withRequestID gives a mutation an id if the caller chose none, so that a retry is not a second mutation.
func withRequestID(
	ctx context.Context, method string, request, reply any,
	connection *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption,
) error {
	if message, ok := request.(proto.Message); ok {
		field := message.ProtoReflect().Descriptor().Fields().ByName("request_id")
		if field != nil && !message.ProtoReflect().Has(field) {
			message = proto.Clone(message)
			message.ProtoReflect().Set(field, protoreflect.ValueOfString(newUUID()))
			request = message
		}
	}
	return invoke(ctx, method, request, reply, connection, opts...)
}

func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // Never fails.
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
