import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";
import { create, toBinary } from "@bufbuild/protobuf";
import { anyPack } from "@bufbuild/protobuf/wkt";
import { Metadata, status } from "@grpc/grpc-js";
import { AccessDenied, Client, type ClientOptions, Code, DEFAULT_TIMEOUT_MS, ApiError, path, Reason } from "@gatekey/client";
import { CreateApiKeyRequestSchema } from "@gatekey/client/v1/api_key_service";
import { BatchCheckResponseSchema } from "@gatekey/client/v1/check_service";
import { BadRequestSchema, ErrorInfoSchema } from "#rpc/error_details";
import { StatusSchema } from "#rpc/status";
import { failure, Server } from "./server.js";

const QUESTION = { key: "k", resource: "links/abc", action: "read" };

let server: Server;
let clients: Client[];

beforeEach(async () => {
  delete process.env["GATEKEY_TOKEN"];
  server = await Server.start();
  clients = [];
});

afterEach(async () => {
  for (const client of clients) client.close();
  await server.stop();
});

function connect(options: ClientOptions = {}): Client {
  const client = new Client(server.address, { plaintext: true, token: "gk_token", ...options });
  clients.push(client);
  return client;
}

async function failed(promise: Promise<unknown>): Promise<ApiError> {
  const error = await promise.then(
    () => assert.fail("it did not fail"),
    (reason: unknown) => reason,
  );
  assert.ok(error instanceof ApiError, String(error));
  return error;
}

test("a check asks what it was asked", async () => {
  const client = connect();
  const decision = await client.check({ ...QUESTION, tenant: "", product: "heyoo", minRevision: 7n });
  assert.equal(decision.allowed, true);
  await client.check(QUESTION);
  const [first, second] = server.attempts.map(({ request }) => request);
  assert.deepEqual({ ...first }, {
    $typeName: "gatekey.v1.CheckRequest", ...QUESTION, tenant: "", product: "heyoo", minRevision: 7n,
  });
  assert.deepEqual({ ...second }, { $typeName: "gatekey.v1.CheckRequest", ...QUESTION, minRevision: 0n });
});

test("an id that got lost is not taken for any", async () => {
  const client = connect();
  for (const lost of [{ tenant: undefined }, { product: undefined }, { tenant: null }] as object[]) {
    await assert.rejects(client.check({ ...QUESTION, ...lost }), TypeError);
    await assert.rejects(client.batchCheck([QUESTION, { ...QUESTION, ...lost }]), TypeError);
  }
  assert.equal(server.attempts.length, 0);
});

test("require throws a denial", async () => {
  const client = connect();
  assert.equal((await client.require(QUESTION)).allowed, true);
  await assert.rejects(client.require({ ...QUESTION, action: "write" }), (error) => {
    assert.ok(error instanceof AccessDenied);
    assert.equal(error.decision.reason, Reason.KEY_REVOKED);
    assert.equal(error.message, "the key was revoked (KEY_REVOKED)");
    return true;
  });
  server.failures[2] = failure(status.INTERNAL);
  assert.equal((await failed(client.require(QUESTION))).code, Code.INTERNAL);
});

test("a batch answers each by itself", async () => {
  server.batch = create(BatchCheckResponseSchema, {
    results: [
      { result: { case: "response", value: { allowed: true } } },
      {
        result: {
          case: "error",
          value: { code: Code.INVALID_ARGUMENT, reason: "ID_REQUIRED", message: "empty", field: "tenant" },
        },
      },
      {},
    ],
  });
  const client = connect();
  const [first, second, third] = await client.batchCheck([QUESTION, QUESTION, QUESTION]);
  assert.equal(first?.decision?.allowed, true);
  assert.equal(second?.decision, undefined);
  assert.deepEqual(
    [second?.error?.code, second?.error?.reason, second?.error?.message, second?.error?.fields],
    [
      Code.INVALID_ARGUMENT,
      "ID_REQUIRED",
      "INVALID_ARGUMENT: empty",
      [{ field: "tenant", reason: "ID_REQUIRED", description: "empty" }],
    ],
  );
  assert.equal(third?.error?.code, Code.INTERNAL);
  assert.equal((await failed(client.batchCheck([QUESTION]))).code, Code.INTERNAL);
});

test("calls have a deadline", async () => {
  const remaining = async (client: Client, options?: { timeoutMs: number }) => {
    await client.check(QUESTION, options);
    return server.attempts.at(-1)!.remainingMs;
  };
  const client = connect();
  const byDefault = await remaining(client);
  assert.ok(byDefault > 0 && byDefault <= DEFAULT_TIMEOUT_MS, String(byDefault));
  const byClient = await remaining(connect({ timeoutMs: 3_600_000 }));
  assert.ok(byClient > DEFAULT_TIMEOUT_MS && byClient <= 3_600_000, String(byClient));
  const byCall = await remaining(client, { timeoutMs: 60_000 });
  assert.ok(byCall > DEFAULT_TIMEOUT_MS && byCall <= 60_000, String(byCall));
});

test("only what was not done is retried", async () => {
  for (let code = status.CANCELLED; code <= status.UNAUTHENTICATED; code++) {
    server.attempts.length = 0;
    server.failures = [failure(code), failure(status.UNAVAILABLE)];
    const client = connect();
    if (code === status.UNAVAILABLE || code === status.CANCELLED) {
      assert.equal((await client.check(QUESTION)).allowed, true);
      assert.equal(server.attempts.length, 3);
    } else {
      assert.equal((await failed(client.check(QUESTION))).code, code);
      assert.equal(server.attempts.length, 1);
    }
  }
});

test("retries end with the deadline", async () => {
  server.failures = new Array(100).fill(failure(status.UNAVAILABLE));
  const error = await failed(connect().check(QUESTION, { timeoutMs: 50 }));
  assert.ok([Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED].includes(error.code), error.message);
  assert.ok(server.attempts.length <= 3, String(server.attempts.length));
});

test("retries pause while much fails", async () => {
  const calls = 400;
  server.failures = new Array(calls * 5).fill(failure(status.UNAVAILABLE));
  const client = connect();
  const errors = await Promise.all(Array.from({ length: calls }, () => failed(client.check(QUESTION))));
  assert.deepEqual(new Set(errors.map(({ code }) => code)), new Set([Code.UNAVAILABLE]));
  assert.ok(server.attempts.length < calls * 3, String(server.attempts.length));
});

test("a restarted server is found again", async () => {
  const client = connect();
  for (let round = 0; round < 3; round++) {
    await client.check(QUESTION);
    await server.stop();
    server = await Server.start(server.address);
  }
  await client.check(QUESTION);
});

test("the token is presented", async () => {
  const presented = async (client: Client) => {
    await client.check(QUESTION);
    return server.attempts.at(-1)!.metadata.get("authorization");
  };
  assert.deepEqual(await presented(connect()), ["Bearer gk_token"]);
  process.env["GATEKEY_TOKEN"] = "gk_environment\n";
  const fromEnvironment = new Client(server.address, { plaintext: true });
  clients.push(fromEnvironment);
  assert.deepEqual(await presented(fromEnvironment), ["Bearer gk_environment"]);
  const tokens = ["gk_first", "gk_second"];
  const rotating = connect({ token: async () => tokens.shift()! });
  assert.deepEqual(await presented(rotating), ["Bearer gk_first"]);
  assert.deepEqual(await presented(rotating), ["Bearer gk_second"]);
});

test("what is around a token is left away", async () => {
  for (const around of ["gk_token\n", "\ufeffgk_token", "\ufeff gk_token\r\n", " \tgk_token\v\f"]) {
    process.env["GATEKEY_TOKEN"] = around;
    const options: ClientOptions[] = [{}, { token: around }, { token: () => around }];
    for (const given of options) {
      const client = new Client(server.address, { plaintext: true, ...given });
      clients.push(client);
      await client.check(QUESTION);
      assert.deepEqual(server.attempts.at(-1)!.metadata.get("authorization"), ["Bearer gk_token"]);
    }
  }
});

test("what is left in a token is refused", async () => {
  const wrong = ["gk_secret\u00a0", "\u200bgk_secret", "gk_secret and", "gk_secret\ngk", "gk_secret\u00e9", "\n", "\x7fgk_secret"];
  for (const text of wrong) {
    process.env["GATEKEY_TOKEN"] = text;
    const told = (source: string) => (error: Error) =>
      error instanceof TypeError && error.message.startsWith(`${source}: `) && !error.message.includes("gk_secret");
    assert.throws(() => new Client(server.address, { plaintext: true }), told("GATEKEY_TOKEN"), text);
    assert.throws(() => new Client(server.address, { plaintext: true, token: text }), told("token"), text);
    const error = await failed(connect({ token: () => text }).check(QUESTION));
    assert.equal(error.code, Code.UNAUTHENTICATED);
    assert.match(error.message, /the function that gives the service token: /);
    assert.doesNotMatch(error.message, /gk_secret/);
  }
  assert.equal(server.attempts.length, 0);
});

test("only text is an id", () => {
  for (const lost of [undefined, null, 42, ["s1"]] as string[][]) {
    assert.throws(() => path("shipments", lost as unknown as string), TypeError);
  }
  assert.throws(() => path("shipments", "\ud800"), (error) => error instanceof ApiError && error.reason === "RESOURCE_INVALID");
});

test("the check config is that of the product", async () => {
  const client = connect();
  assert.equal((await failed(client.checkConfig())).code, Code.UNIMPLEMENTED);
  assert.equal((await failed(client.checkConfig("heyoo"))).code, Code.UNIMPLEMENTED);
});

test("without a token nothing is asked", async () => {
  assert.throws(() => new Client(server.address, { plaintext: true }), TypeError);
  const sources = [
    () => "",
    () => "gk_secret\0",
    () => "gk_secret and more",
    () => Promise.reject(new Error("the vault is away")),
    (): string => {
      throw new Error("the vault is away");
    },
  ];
  for (const token of sources) {
    const error = await failed(connect({ token }).check(QUESTION));
    assert.equal(error.code, Code.UNAUTHENTICATED);
    assert.doesNotMatch(error.message, /gk_secret/);
  }
  const never = connect({ token: () => new Promise<string>(() => {}) });
  assert.equal((await failed(never.check(QUESTION, { timeoutMs: 10 }))).code, Code.DEADLINE_EXCEEDED);
  assert.equal((await failed(never.check(QUESTION, { signal: AbortSignal.timeout(10) }))).code, Code.CANCELLED);
  assert.equal(server.attempts.length, 0);
});

test("a call can be aborted", async () => {
  const client = connect();
  const error = await failed(client.check(QUESTION, { signal: AbortSignal.abort("enough") }));
  assert.deepEqual([error.code, error.cause], [Code.CANCELLED, "enough"]);
  assert.equal(server.attempts.length, 0);
  server.failures = new Array(100).fill(failure(status.UNAVAILABLE));
  const underWay = client.check(QUESTION, { signal: AbortSignal.timeout(20), timeoutMs: 60_000 });
  assert.equal((await failed(underWay)).code, Code.CANCELLED);
});

test("a retried mutation keeps its request id", async () => {
  server.failures = [failure(status.UNAVAILABLE)];
  const client = connect();
  const request = create(CreateApiKeyRequestSchema, { parent: "products/heyoo/tenants/acme" });
  await client.apiKeys.createApiKey(request);
  await client.apiKeys.createApiKey(request);
  await client.apiKeys.createApiKey({ requestId: "mine" });
  const ids = server.attempts.map((attempt) => attempt.request["requestId"]);
  assert.match(String(ids[0]), /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
  assert.deepEqual(ids, [ids[0], ids[0], ids[2], "mine"]);
  assert.notEqual(ids[0], ids[2]);
  assert.equal(request.requestId, "");
});

test("the actor is named", async () => {
  const actor = "products/heyoo/tenants/acme/members/u";
  await connect().apiKeys.createApiKey({}, { actor });
  assert.deepEqual(server.attempts[0]?.metadata.get("gatekey-actor"), [actor]);
  for (const lost of [{ actor: "" }, { actor: undefined }] as object[]) {
    await assert.rejects(connect().apiKeys.createApiKey({}, lost), TypeError);
  }
  assert.equal(server.attempts.length, 1);
});

test("an error tells its details", async () => {
  const violation = { field: "resource", reason: "RESOURCE_INVALID", description: "empty segment" };
  const details = (domain: string) => {
    const metadata = new Metadata();
    const packed = create(StatusSchema, {
      details: [
        anyPack(ErrorInfoSchema, create(ErrorInfoSchema, { domain, reason: "SOME_REASON", metadata: { of: "x" } })),
        anyPack(BadRequestSchema, create(BadRequestSchema, { fieldViolations: [violation] })),
      ],
    });
    metadata.set("grpc-status-details-bin", Buffer.from(toBinary(StatusSchema, packed)));
    return failure(status.INVALID_ARGUMENT, "bad", metadata);
  };
  server.failures = [details("gatekey"), details("other")];
  const client = connect();
  const ours = await failed(client.check(QUESTION));
  assert.equal(ours.message, "INVALID_ARGUMENT: bad");
  assert.deepEqual([ours.reason, ours.metadata, ours.fields], ["SOME_REASON", { of: "x" }, [violation]]);
  const others = await failed(client.check(QUESTION));
  assert.deepEqual([others.reason, others.metadata, others.fields], ["", {}, []]);
});

test("contradictions are refused", () => {
  const contradictions: ClientOptions[] = [
    { plaintext: true, tls: {} },
    { plaintext: false, tls: { certificate: "pem" } },
    { timeoutMs: 0 },
    { timeoutMs: Number.NaN },
  ];
  for (const options of contradictions) {
    assert.throws(() => new Client("localhost:50051", { token: "t", ...options }), TypeError);
  }
});
