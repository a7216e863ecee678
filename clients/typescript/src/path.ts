import { status } from "@grpc/grpc-js";

import { ApiError } from "./errors.js";

/**
 * Returns the path of a resource from alternating collections and ids: `path("shipments", id)`. Each id becomes one segment,
 * whatever it holds. Characters that a segment cannot hold are percent-encoded, `%` and `/` included, so that different ids
 * are different segments. Throws an `ApiError` with the reason `RESOURCE_INVALID` if an id is empty, `.`, `..` or `*`,
 * holds a control character or is not Unicode, and if a collection has no id.
 */
export function path(...segments: string[]): string {
  if (segments.length === 0 || segments.length % 2 !== 0) {
    throw invalid("a path has collections and ids in turns, and the last one is an id");
  }
  return segments.map(encode).join("/");
}

function encode(id: string): string {
  if (typeof id !== "string") throw new TypeError(`an id is a string, not ${typeof id}`);
  if (/^(?:|\.{1,2}|\*)$/.test(id) || /[\0-\x1f\x7f]/.test(id)) {
    throw invalid("an id is empty, `.`, `..` or `*`, or holds a control character");
  }
  let encoded: string;
  try {
    encoded = encodeURIComponent(id);
  } catch {
    throw invalid("an id is not Unicode");
  }
  // `encodeURIComponent` encodes some characters that a segment may hold, and leaves the wildcard.
  return encoded.replace(/%(?:24|26|2B|2C|3A|3B|3D|40)/g, decodeURIComponent).replaceAll("*", "%2A");
}

function invalid(description: string): ApiError {
  const reason = "RESOURCE_INVALID";
  return new ApiError(status.INVALID_ARGUMENT, description, { reason, fields: [{ field: "resource", reason, description }] });
}
