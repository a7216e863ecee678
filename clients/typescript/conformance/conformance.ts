// Reads questions as JSON, asks each alone and all together, and writes the answers as JSON.
import { existsSync, readFileSync } from "node:fs";
import { type CheckResponse, Client, ApiError, KeyKind, path, type Question, Reason } from "@gatekey/client";

// Below the server's limit, so that there are several batches.
const MAX_BATCH = 100;

interface Input {
  address: string;
  tls: { ca: string; certificate?: string; key?: string } | null;
  cases: { token: string; key: string; resource: string; action: string; tenant: string | null }[];
  /** The segments of each. */
  paths?: string[][];
  /** Calls to be made without a pause, until a file is there. */
  load?: { addresses: string[]; token: string; until: string };
}

type Case = Input["cases"][number];

const { address, tls, cases, paths = [], load }: Input = JSON.parse(readFileSync(0, "utf8"));
const alone: object[] = new Array(cases.length);
const together: object[] = new Array(cases.length);

for (const token of new Set(cases.map((asked) => asked.token))) {
  const client = new Client(address, { ...transport(), ...(token && { token }) });
  const places = [...cases.keys()].filter((place) => cases[place]!.token === token);
  while (places.length > 0) {
    const some = places.splice(0, MAX_BATCH);
    const questions = some.map((place) => question(cases[place]!));
    const decisions = await Promise.allSettled(questions.map((asked) => client.check(asked)));
    const results = await client.batchCheck(questions);
    some.forEach((place, index) => {
      const settled = decisions[index]!;
      alone[place] = settled.status === "fulfilled" ? told(settled.value) : failed(settled.reason);
      const { decision, error } = results[index]!;
      together[place] = decision ? told(decision) : failed(error);
    });
  }
  client.close();
}
console.log(JSON.stringify({ alone, together, paths: paths.map(pathOf), ...(load && (await underLoad(load))) }));

async function underLoad({ addresses, token, until }: NonNullable<Input["load"]>): Promise<object> {
  const client = new Client(`ipv4:${addresses.join(",")}`, { plaintext: true, token });
  const asked = { key: "x", resource: "links", action: "read" };
  const calls = [
    () => client.check(asked),
    () => client.batchCheck([asked, asked]),
    () => client.products.getProduct({ name: "products/gatekey" }),
  ];
  const failures: string[] = [];
  let done = 0;
  const workers = Array.from({ length: 12 }, async (_, number) => {
    while (!existsSync(until)) {
      await calls[number % calls.length]!().then(
        () => done++,
        (error: unknown) => failures.push(String(error)),
      );
    }
  });
  await Promise.all(workers);
  client.close();
  return { done, failures };
}

function pathOf(segments: string[]): string | null {
  try {
    return path(...segments);
  } catch (error) {
    if (error instanceof ApiError && error.reason === "RESOURCE_INVALID") return null;
    throw error;
  }
}

function question({ key, resource, action, tenant }: Case): Question {
  return { key, resource, action, ...(tenant !== null && { tenant }) };
}

function told(decision: CheckResponse): object {
  const { allowed, product, tenant, principal, role, kind, apiKey, expireTime, reason, missingPermissions } = decision;
  return {
    code: 0,
    reason: Reason[reason],
    allowed,
    missing: missingPermissions.map(({ resource, action }) => [resource, action]),
    product,
    tenant,
    principal,
    role,
    api_key: apiKey,
    kind: KeyKind[kind],
    expires: expireTime !== undefined,
  };
}

function failed(error: unknown): object {
  if (!(error instanceof ApiError)) throw error;
  const nothing = { allowed: false, missing: [], product: "", tenant: "", principal: "", role: "", api_key: "" };
  return { ...nothing, code: error.code, reason: error.reason, kind: "UNSPECIFIED", expires: false };
}

function transport(): ConstructorParameters<typeof Client>[1] {
  if (!tls) return { plaintext: true };
  const { ca, certificate, key } = tls;
  const own = certificate && key && { certificate: readFileSync(certificate), key: readFileSync(key) };
  return { tls: { ca: readFileSync(ca), ...own } };
}
