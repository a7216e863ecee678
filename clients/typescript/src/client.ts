import { credentials, status, type ChannelCredentials, type ChannelOptions } from "@grpc/grpc-js";

import { type CallOptions, Connection, type ServiceClient, type TokenSource } from "./connection.js";
import { AccessDenied, fromBatch, ApiError } from "./errors.js";
import { ApiKeyService } from "./gen/gatekey/v1/api_key_service_pb.js";
import { AuditService } from "./gen/gatekey/v1/audit_service_pb.js";
import { type CheckConfig, type CheckResponse, CheckService } from "./gen/gatekey/v1/check_service_pb.js";
import { MachineUserService } from "./gen/gatekey/v1/machine_user_service_pb.js";
import { MemberService } from "./gen/gatekey/v1/member_service_pb.js";
import { ProductService } from "./gen/gatekey/v1/product_service_pb.js";
import { TenantService } from "./gen/gatekey/v1/tenant_service_pb.js";
import { clean } from "./token.js";

/** The time limit of a call, including its retries. */
export const DEFAULT_TIMEOUT_MS = 5_000;

/** The environment variable with the service token of a client without the option `token`. */
export const TOKEN_VARIABLE = "GATEKEY_TOKEN";

/** The trusted authorities and, for mutual TLS, the client's certificate and key, all as PEM. */
export interface TlsOptions {
  /** The trusted authorities. Default: those that Node trusts. */
  readonly ca?: Buffer | string;
  readonly certificate?: Buffer | string;
  readonly key?: Buffer | string;
}

/** The options of a client. */
export interface ClientOptions {
  /**
   * The service token, or a function that returns it. The client calls the function before every call, so that a token
   * can be replaced while the client is in use. It should keep the token rather than fetch it. Default: `GATEKEY_TOKEN`.
   */
  readonly token?: string | TokenSource;
  /** Default: TLS with the authorities that Node trusts. */
  readonly tls?: TlsOptions;
  /**
   * Turns TLS off. Whoever can read the connection can take the token and the keys. Use it only for servers on the same
   * machine, or where something else encrypts.
   */
  readonly plaintext?: boolean;
  /** Default: `DEFAULT_TIMEOUT_MS`. */
  readonly timeoutMs?: number;
  /** More options of `@grpc/grpc-js`. They override the client's own. */
  readonly channelOptions?: ChannelOptions;
}

/** May the holder of the key do the action on the resource? */
export interface Question {
  /** The secret as it was presented, without header or scheme. */
  readonly key: string;
  /** The path of the resource: `links`, `links/abc`. */
  readonly resource: string;
  readonly action: string;
  /** The id of the tenant that the request is about: a key of another tenant is denied. */
  readonly tenant?: string;
  /** The id of the product that asks: a key of another product is unknown. For callers whose token may check several. */
  readonly product?: string;
  /** The decision must be right as of this revision or a later one. */
  readonly minRevision?: bigint;
}

/** The result of one question of a batch. An error means that no decision was made. */
export type BatchResult =
  | { readonly decision: CheckResponse; readonly error?: undefined }
  | { readonly decision?: undefined; readonly error: ApiError };

/** One connection to Gatekey, or several if its address stands for several servers. A program needs one client. */
export class Client {
  readonly checks: ServiceClient<typeof CheckService>;
  readonly products: ServiceClient<typeof ProductService>;
  readonly tenants: ServiceClient<typeof TenantService>;
  readonly members: ServiceClient<typeof MemberService>;
  readonly machineUsers: ServiceClient<typeof MachineUserService>;
  readonly apiKeys: ServiceClient<typeof ApiKeyService>;
  readonly audit: ServiceClient<typeof AuditService>;
  readonly #connection: Connection;

  /** Makes a client of the server at `HOST:PORT`. It uses all addresses of a name in turn. */
  constructor(address: string, options: ClientOptions = {}) {
    const timeoutMs = options.timeoutMs ?? DEFAULT_TIMEOUT_MS;
    if (!(timeoutMs > 0)) throw new TypeError(`the timeout of ${timeoutMs} ms is not above 0`);
    const transport = transportOf(options);
    const connection = new Connection(address, transport, tokenOf(options), timeoutMs, options.channelOptions ?? {});
    this.#connection = connection;
    this.checks = connection.service(CheckService);
    this.products = connection.service(ProductService);
    this.tenants = connection.service(TenantService);
    this.members = connection.service(MemberService);
    this.machineUsers = connection.service(MachineUserService);
    this.apiKeys = connection.service(ApiKeyService);
    this.audit = connection.service(AuditService);
  }

  /** Returns the decision whether the holder of a key may do an action on a resource. A denial is not an error. */
  async check(question: Question, options?: CallOptions): Promise<CheckResponse> {
    return this.checks.check(checked(question), options);
  }

  /** Checks as `check` does, and throws a denial as `AccessDenied`. */
  async require(question: Question, options?: CallOptions): Promise<CheckResponse> {
    const decision = await this.check(question, options);
    if (!decision.allowed) throw new AccessDenied(decision);
    return decision;
  }

  /** Returns the results of up to 1000 questions, in their order. It throws an error only about the batch as a whole. */
  async batchCheck(questions: readonly Question[], options?: CallOptions): Promise<BatchResult[]> {
    const { results } = await this.checks.batchCheck({ checks: questions.map(checked) }, options);
    if (results.length !== questions.length) {
      throw new ApiError(status.INTERNAL, `${questions.length} checks got ${results.length} answers`);
    }
    return results.map(({ result }) =>
      result.case === "response" ? { decision: result.value } : { error: fromBatch(result.value) },
    );
  }

  /**
   * Returns the resources and actions of a product that can be checked, and where holders present their keys. Call it when
   * a service starts. It throws if the token cannot check the product's keys; all of them would be unknown. The default
   * product is the only one that the token may check.
   */
  async checkConfig(product = "-", options?: CallOptions): Promise<CheckConfig> {
    return this.checks.getCheckConfig({ name: `products/${product}/checkConfig` }, options);
  }

  /** Ends the connection. */
  close(): void {
    this.#connection.close();
  }
}

/** Throws a `TypeError` for a lost id, which must not match every tenant or product. */
function checked(question: Question): Question {
  for (const name of ["tenant", "product"] as const) {
    if (name in question && typeof question[name] !== "string") {
      throw new TypeError(`${name} is there and no string: leave it out, or give an id`);
    }
  }
  return question;
}

function transportOf({ plaintext, tls }: ClientOptions): ChannelCredentials {
  if (plaintext && tls) throw new TypeError("plaintext and tls exclude each other");
  if (plaintext) return credentials.createInsecure();
  const { ca, certificate, key } = tls ?? {};
  if ((certificate === undefined) !== (key === undefined)) throw new TypeError("certificate and key need each other");
  return credentials.createSsl(bytes(ca), bytes(key), bytes(certificate));
}

function bytes(pem: Buffer | string | undefined): Buffer | null {
  return pem === undefined ? null : Buffer.from(pem);
}

function tokenOf({ token, tls }: ClientOptions): TokenSource | undefined {
  if (typeof token === "function") return token;
  const given = token ?? process.env[TOKEN_VARIABLE];
  if (given) {
    const cleaned = clean(given, token === undefined ? TOKEN_VARIABLE : "token");
    return () => cleaned;
  }
  // A client certificate can replace the token.
  if (tls?.certificate) return undefined;
  throw new TypeError(`there is no service token: give one, or set ${TOKEN_VARIABLE}`);
}
