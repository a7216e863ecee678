/**
 * Asks a Gatekey server whether the holder of an API key may do an action on a resource. It also administers products,
 * tenants, members and keys.
 *
 * A denial is a decision, not an error. An error means that no decision was made. Treat it as a denial.
 *
 * @module
 */

export {
  type BatchResult,
  Client,
  type ClientOptions,
  DEFAULT_TIMEOUT_MS,
  type Question,
  type TlsOptions,
  TOKEN_VARIABLE,
} from "./client.js";
export type { CallOptions, ServiceClient, TokenSource } from "./connection.js";
export { AccessDenied, type FieldViolation, ApiError } from "./errors.js";
export { type CheckConfig, type CheckResponse, CheckResponse_Reason as Reason } from "./gen/gatekey/v1/check_service_pb.js";
export { AccessMode, KeyKind } from "./gen/gatekey/v1/types_pb.js";
export { path } from "./path.js";
export { status as Code } from "@grpc/grpc-js";
