// Makes a key and asks what it may do: GATEKEY_TOKEN=gk_… node quickstart.js 127.0.0.1:50051
import { AccessDenied, AccessMode, Client, Code, ApiError, path, Reason } from "@gatekey/client";

const address = process.argv[2] ?? "127.0.0.1:50051";
// One client for the whole program. The token comes from GATEKEY_TOKEN.
const client = new Client(address, { plaintext: true });

/** Makes a tenant and a member, unless they are there, and a key that may read and write campaigns. */
async function makeKey() {
  const product = "products/heyoo";
  const tenant = `${product}/tenants/typescript-quickstart`;
  await client.tenants.createTenant({ parent: product, tenantId: "typescript-quickstart" }).catch(unlessThere);
  await client.members.addMember({ parent: tenant, memberId: "u_42", member: { role: "member" } }).catch(unlessThere);
  const { secret, apiKey } = await client.apiKeys.createApiKey({
    parent: tenant,
    apiKey: {
      displayName: "Quickstart",
      owner: `${tenant}/members/u_42`,
      mode: AccessMode.RESTRICTED,
      grants: [{ resource: "campaigns", actions: ["read", "write"] }],
    },
  });
  return { key: secret, name: apiKey!.name };
}

function unlessThere(error: unknown): void {
  if (!(error instanceof ApiError && error.code === Code.ALREADY_EXISTS)) throw error;
}

const { key, name } = await makeKey();

// Where this throws, no decision was made: deny.
const decision = await client.check({
  key,
  resource: path("campaigns", "spring"), // One id stays one segment, whatever it holds.
  action: "write",
  tenant: "typescript-quickstart",
});
console.log(decision.allowed, Reason[decision.reason], decision.role);

try {
  await client.require({ key, resource: "tags", action: "write" });
} catch (error) {
  if (!(error instanceof AccessDenied)) throw error;
  for (const missing of error.decision.missingPermissions) {
    console.log("missing:", missing.action, "on", missing.resource);
  }
}

const results = await client.batchCheck([
  { key, resource: "campaigns", action: "read" },
  { key, resource: "campaigns//", action: "read" },
]);
for (const result of results) {
  console.log(result.decision?.allowed ?? false, result.error?.reason ?? "");
}

await client.apiKeys.deleteApiKey({ name });
client.close();
