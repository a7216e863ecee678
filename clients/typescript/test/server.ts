// A server that answers over the network as it is told to, and remembers what came.
import { create, type DescMethod, type DescService, fromBinary, type Message, toBinary } from "@bufbuild/protobuf";
import * as grpc from "@grpc/grpc-js";
import { ApiKeyService, CreateApiKeyResponseSchema } from "@gatekey/client/v1/api_key_service";
import { BatchCheckResponseSchema, CheckResponse_Reason, CheckResponseSchema, CheckService } from "@gatekey/client/v1/check_service";

export interface Attempt {
  readonly request: Message & Record<string, unknown>;
  readonly metadata: grpc.Metadata;
  readonly remainingMs: number;
}

export class Server {
  readonly attempts: Attempt[] = [];
  /** The answers to the first attempts. */
  failures: grpc.StatusObject[] = [];
  batch = create(BatchCheckResponseSchema);
  address = "";
  readonly #grpc = new grpc.Server();

  static async start(address = "127.0.0.1:0"): Promise<Server> {
    const server = new Server();
    const answers: Record<string, (request: Attempt["request"]) => Message> = {
      Check: ({ action }) =>
        action === "read"
          ? create(CheckResponseSchema, { allowed: true, reason: CheckResponse_Reason.ALLOWED })
          : create(CheckResponseSchema, { reason: CheckResponse_Reason.KEY_REVOKED, message: "the key was revoked" }),
      BatchCheck: () => server.batch,
      CreateApiKey: () => create(CreateApiKeyResponseSchema),
    };
    for (const service of [CheckService, ApiKeyService] as DescService[]) {
      for (const method of service.methods) {
        const answer = answers[method.name];
        if (answer) server.#grpc.addService({ [method.name]: definition(method) }, { [method.name]: server.#handler(answer) });
      }
    }
    const port = await new Promise<number>((resolve, reject) =>
      server.#grpc.bindAsync(address, grpc.ServerCredentials.createInsecure(), (error, bound) =>
        error ? reject(error) : resolve(bound),
      ),
    );
    server.address = `127.0.0.1:${port}`;
    return server;
  }

  /** Ends as a server does that is asked to: what is under way is answered. */
  stop(): Promise<void> {
    return new Promise((resolve, reject) => this.#grpc.tryShutdown((error) => (error ? reject(error) : resolve())));
  }

  #handler(answer: (request: Attempt["request"]) => Message): grpc.handleUnaryCall<Attempt["request"], Message> {
    return (call, reply) => {
      const remainingMs = Number(call.getDeadline()) - Date.now();
      this.attempts.push({ request: call.request, metadata: call.metadata, remainingMs });
      const failure = this.failures[this.attempts.length - 1];
      if (failure) reply(failure);
      else reply(null, answer(call.request));
    };
  }
}

export function failure(code: grpc.status, details = "no", metadata = new grpc.Metadata()): grpc.StatusObject {
  return { code, details, metadata };
}

function definition(method: DescMethod): grpc.MethodDefinition<Message, Message> {
  const bytesOf = (message: Message) => Buffer.from(toBinary(method.output, message));
  const messageOf = (bytes: Buffer) => fromBinary(method.input, bytes);
  return {
    path: `/${method.parent.typeName}/${method.name}`,
    requestStream: false,
    responseStream: false,
    requestSerialize: bytesOf,
    requestDeserialize: messageOf,
    responseSerialize: bytesOf,
    responseDeserialize: messageOf,
  };
}
