// What the README shows; compiled, to be sure that it can be.
import { readFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { Client, Code, ApiError, path, Reason } from "@gatekey/client";
import { UpdateApiKeyRequestSchema } from "@gatekey/client/v1/api_key_service";
import { create } from "@bufbuild/protobuf";

export function mutualTls() {
  const client = new Client("gatekey.internal:50051", {
    tls: {
      ca: readFileSync("ca.pem"),
      // Only for mutual TLS.
      certificate: readFileSync("client.pem"),
      key: readFileSync("client.key"),
    },
  });
  return client;
}

export function tokenOfAFile() {
  const client = new Client("gatekey.internal:50051", {
    // A file that something else keeps up to date.
    token: () => readFile("/run/secrets/gatekey", "utf8"),
  });
  return client;
}

export async function errors(client: Client, key: string): Promise<boolean> {
  try {
    const decision = await client.check({ key, resource: "campaigns/spring", action: "write" }, { timeoutMs: 200 });
    if (!decision.allowed) console.log("denied:", Reason[decision.reason], decision.message);
    return decision.allowed;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    const away = error.code === Code.UNAVAILABLE || error.code === Code.DEADLINE_EXCEEDED;
    console.error(away ? "look after Gatekey:" : "mend the caller:", error.reason, error.message);
    return false;
  }
}

export async function actor(client: Client) {
  await client.apiKeys.revokeApiKey(
    { name: "products/heyoo/tenants/acme/apiKeys/key_…", reason: "leaked" },
    { actor: "products/heyoo/tenants/acme/members/u_42" },
  );
}

export async function messages(client: Client) {
  const request = create(UpdateApiKeyRequestSchema, {
    apiKey: { name: "products/heyoo/tenants/acme/apiKeys/key_…", displayName: "CI" },
    updateMask: { paths: ["display_name"] },
  });
  await client.apiKeys.updateApiKey(request);
}

export async function labels(client: Client, key: string, id: string, label: string): Promise<boolean> {
  const resource = path("shipments", id, "labels", label);
  return (await client.check({ key, resource, action: "read" })).allowed;
}

export async function atTheStart(client: Client) {
  const { credential, collections } = await client.checkConfig("heyoo");
  console.log("keys come in the header", credential?.header, "for", collections.map(({ pattern }) => pattern));
}
