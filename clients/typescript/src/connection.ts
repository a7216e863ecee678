import { randomUUID } from "node:crypto";
import {
  clone,
  create,
  type DescMessage,
  type DescMethod,
  type DescMethodUnary,
  type DescService,
  fromBinary,
  type MessageInitShape,
  type MessageShape,
  toBinary,
} from "@bufbuild/protobuf";
import { reflect } from "@bufbuild/protobuf/reflect";
import * as grpc from "@grpc/grpc-js";

import { fromCall, ApiError } from "./errors.js";
import { clean } from "./token.js";

/** The options of one call. */
export interface CallOptions {
  /** The time limit of the call, including its retries. Default: the client's. */
  readonly timeoutMs?: number;
  /** Ends the call early. */
  readonly signal?: AbortSignal;
  /** The resource name of the member or machine user on whose behalf a mutation is made. */
  readonly actor?: string;
}

/** The methods of a service. */
export type ServiceClient<Service extends DescService> = {
  readonly [Name in keyof Service["method"]]: Service["method"][Name] extends DescMethodUnary<infer Input, infer Output>
    ? (request: MessageInitShape<Input>, options?: CallOptions) => Promise<MessageShape<Output>>
    : never;
};

/** Returns the service token for a call. */
export type TokenSource = () => string | Promise<string>;

// Any call may be retried: reads change nothing, and mutations carry a request id. A server that stops cancels the
// calls that it has not carried out. A call that this side cancels is not retried.
const SERVICE_CONFIG = {
  loadBalancingConfig: [{ round_robin: {} }],
  methodConfig: [
    {
      name: [{}],
      retryPolicy: {
        maxAttempts: 5,
        initialBackoff: "0.1s",
        maxBackoff: "1s",
        backoffMultiplier: 3,
        retryableStatusCodes: ["UNAVAILABLE", "CANCELLED"],
      },
    },
  ],
  retryThrottling: { maxTokens: 1000, tokenRatio: 0.1 },
};

// A server that stops names the last call that it accepted, and responds to none after it. Node then ends all calls of
// the connection alike. grpc-js reports INTERNAL for them, although no server has responded.
const CONNECTION_ENDED = "triggered by internal client error";
const MAX_ENDED_CONNECTIONS = 4;

const CHANNEL_OPTIONS: grpc.ChannelOptions = {
  "grpc.service_config": JSON.stringify(SERVICE_CONFIG),
  "grpc.service_config_disable_resolution": 1,
  // Find a restarted server soon, but do not overload it.
  "grpc.initial_reconnect_backoff_ms": 100,
  "grpc.max_reconnect_backoff_ms": 5_000,
};

/** Sends calls, each with the token and a deadline, and mutations with a request id. */
export class Connection {
  readonly #client: grpc.Client;
  readonly #token: TokenSource | undefined;
  readonly #timeoutMs: number;

  constructor(
    address: string,
    credentials: grpc.ChannelCredentials,
    token: TokenSource | undefined,
    timeoutMs: number,
    options: grpc.ChannelOptions,
  ) {
    this.#client = new grpc.Client(address, credentials, { ...CHANNEL_OPTIONS, ...options });
    this.#token = token;
    this.#timeoutMs = timeoutMs;
  }

  service<Service extends DescService>(service: Service): ServiceClient<Service> {
    const methods = service.methods.filter(isUnary).map((method) => {
      const call = (request: MessageInitShape<DescMessage>, options?: CallOptions) => this.#call(method, request, options);
      return [method.localName, call];
    });
    return Object.freeze(Object.fromEntries(methods)) as ServiceClient<Service>;
  }

  close(): void {
    this.#client.close();
  }

  async #call<Input extends DescMessage, Output extends DescMessage>(
    method: DescMethodUnary<Input, Output>,
    init: MessageInitShape<Input>,
    options: CallOptions = {},
  ): Promise<MessageShape<Output>> {
    const { timeoutMs = this.#timeoutMs, signal, actor } = options;
    if ("actor" in options && !actor) throw new TypeError("actor is there and names nobody: leave it out, or give a name");
    const deadline = Date.now() + timeoutMs;
    const request = withRequestId(method.input, create(method.input, init));
    const metadata = new grpc.Metadata();
    if (actor) metadata.set("gatekey-actor", actor);
    if (this.#token) {
      const token = await before(deadline, signal, this.#token);
      metadata.set("authorization", `Bearer ${token}`);
    }
    for (let ended = 0; ; ended++) {
      try {
        return await this.#attempt(method, request, metadata, deadline, signal);
      } catch (error) {
        if (ended === MAX_ENDED_CONNECTIONS || !isEndOfConnection(error)) throw error;
      }
    }
  }

  #attempt<Input extends DescMessage, Output extends DescMessage>(
    method: DescMethodUnary<Input, Output>,
    request: MessageShape<Input>,
    metadata: grpc.Metadata,
    deadline: number,
    signal: AbortSignal | undefined,
  ): Promise<MessageShape<Output>> {
    return new Promise((resolve, reject) => {
      if (signal?.aborted) return reject(aborted(signal));
      const call = this.#client.makeUnaryRequest(
        `/${method.parent.typeName}/${method.name}`,
        (message: MessageShape<Input>) => Buffer.from(toBinary(method.input, message)),
        (bytes) => fromBinary(method.output, bytes),
        request,
        metadata,
        { deadline },
        (error, response) => {
          signal?.removeEventListener("abort", cancel);
          if (error) reject(signal?.aborted ? aborted(signal) : fromCall(error));
          else resolve(response!);
        },
      );
      const cancel = () => call.cancel();
      signal?.addEventListener("abort", cancel);
    });
  }
}

function isEndOfConnection(error: unknown): boolean {
  return error instanceof ApiError && error.code === grpc.status.INTERNAL && error.message.includes(CONNECTION_ENDED);
}

function isUnary(method: DescMethod): method is DescMethodUnary {
  return method.methodKind === "unary";
}

/** Gives a mutation an id if the caller chose none, so that a retry is not a second mutation. */
function withRequestId<Desc extends DescMessage>(schema: Desc, request: MessageShape<Desc>): MessageShape<Desc> {
  const field = schema.fields.find(({ name }) => name === "request_id");
  if (!field || reflect(schema, request).isSet(field)) return request;
  const copy = clone(schema, request);
  reflect(schema, copy).set(field, randomUUID());
  return copy;
}

/** Returns the token from its source. Waits until the deadline of the call at most. */
async function before(deadline: number, signal: AbortSignal | undefined, source: TokenSource): Promise<string> {
  const { promise: over, end } = endOf(deadline, signal);
  let token: string;
  try {
    token = await Promise.race([askFor(source), over]);
  } finally {
    end();
  }
  try {
    return clean(token, "the function that gives the service token");
  } catch (error) {
    throw new ApiError(grpc.status.UNAUTHENTICATED, (error as TypeError).message);
  }
}

async function askFor(source: TokenSource): Promise<string> {
  try {
    return await source();
  } catch (error) {
    throw new ApiError(grpc.status.UNAUTHENTICATED, "there is no service token", {}, { cause: error });
  }
}

function endOf(deadline: number, signal: AbortSignal | undefined): { promise: Promise<never>; end: () => void } {
  let end = () => {};
  const promise = new Promise<never>((_, reject) => {
    const late = () => reject(new ApiError(grpc.status.DEADLINE_EXCEEDED, "the service token came too late"));
    const cancel = () => reject(aborted(signal!));
    const timer = setTimeout(late, deadline - Date.now());
    signal?.addEventListener("abort", cancel);
    if (signal?.aborted) cancel();
    end = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", cancel);
    };
  });
  return { promise, end };
}

function aborted(signal: AbortSignal): ApiError {
  return new ApiError(grpc.status.CANCELLED, "the call was aborted", {}, { cause: signal.reason });
}
