import { fromBinary } from "@bufbuild/protobuf";
import { anyUnpack } from "@bufbuild/protobuf/wkt";
import { Metadata, status, type ServiceError } from "@grpc/grpc-js";

import { type CheckError, type CheckResponse, CheckResponse_Reason } from "./gen/gatekey/v1/check_service_pb.js";
import { BadRequestSchema, ErrorInfoSchema } from "./gen/google/rpc/error_details_pb.js";
import { StatusSchema } from "./gen/google/rpc/status_pb.js";

const DOMAIN = "gatekey";

/** An error in one field of a request. */
export interface FieldViolation {
  readonly field: string;
  /** Stable, like the reason of an error. */
  readonly reason: string;
  readonly description: string;
}

/** No decision was made, or a call was not carried out. Treat it as a denial. */
export class ApiError extends Error {
  override readonly name: string = "ApiError";
  /** The gRPC status code. */
  readonly code: status;
  /** The stable reason, such as `TOKEN_INVALID`; empty if the error did not come from Gatekey itself. */
  readonly reason: string;
  /** Names and counts that belong to the reason. */
  readonly metadata: Readonly<Record<string, string>>;
  readonly fields: readonly FieldViolation[];

  constructor(
    code: status,
    message: string,
    details: { reason?: string; metadata?: Record<string, string>; fields?: readonly FieldViolation[] } = {},
    options?: ErrorOptions,
  ) {
    super(`${status[code] ?? code}: ${message}`, options);
    this.code = code;
    this.reason = details.reason ?? "";
    this.metadata = details.metadata ?? {};
    this.fields = details.fields ?? [];
  }
}

/** The error that `require` throws for a denial. */
export class AccessDenied extends Error {
  override readonly name: string = "AccessDenied";

  constructor(readonly decision: CheckResponse) {
    super(`${decision.message} (${CheckResponse_Reason[decision.reason] ?? decision.reason})`);
  }
}

/** Returns the error of a failed call. */
export function fromCall(error: ServiceError): ApiError {
  return new ApiError(error.code, error.details, detailsOf(error.metadata), { cause: error });
}

/** Returns the error that `check` would have failed with. */
export function fromBatch(problem: CheckError | undefined): ApiError {
  if (!problem || problem.code === status.OK) {
    return new ApiError(status.INTERNAL, "the answer holds neither a decision nor an error");
  }
  const { code, reason, message, field } = problem;
  return new ApiError(code, message, { reason, fields: field ? [{ field, reason, description: message }] : [] });
}

function detailsOf(trailer: Metadata): ConstructorParameters<typeof ApiError>[2] {
  const [packed] = trailer.get("grpc-status-details-bin");
  if (!Buffer.isBuffer(packed)) return {};
  const { details } = fromBinary(StatusSchema, packed);
  const info = details.map((detail) => anyUnpack(detail, ErrorInfoSchema)).find((found) => found?.domain === DOMAIN);
  if (!info) return {};
  const fields = details.flatMap((detail) => anyUnpack(detail, BadRequestSchema)?.fieldViolations ?? []);
  return {
    reason: info.reason,
    metadata: info.metadata,
    fields: fields.map(({ field, reason, description }) => ({ field, reason, description })),
  };
}
