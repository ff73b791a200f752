// Requests to the server that this page came from. Owns the token, in this module's memory alone, and what the answers
// mean; knows no elements. Addresses are relative to the page, so that it also works below a path of a proxy.

const ROOT = new URL("..", import.meta.url);
const TIMEOUT_MS = 15_000;
const WHOLE_BYTES = 256 << 10; // a larger value is read in its beginning alone
const BEGINNING_BYTES = 32 << 10;

let token = "";

export function useToken(text) {
  token = text;
}

/** The server answered with an error, or did not answer: then `status` is 0. The message is for people. */
export class Failure extends Error {
  constructor(status, text, etag = null) {
    super(text);
    this.status = status;
    this.etag = etag;
  }
}

/**
 * Sends a request; resolves to the response when its status is good, and raises a Failure otherwise. `timeoutMs` is
 * for the head of the answer.
 */
export async function request(path, { method = "GET", body, headers = {}, timeoutMs = TIMEOUT_MS, signal } = {}) {
  const abort = new AbortController();
  signal?.addEventListener("abort", () => abort.abort());
  const timer = setTimeout(() => abort.abort(), timeoutMs);
  const authorization = token ? { Authorization: `Bearer ${token}` } : {};
  let response;
  try {
    const options = { method, body, headers: { ...authorization, ...headers }, signal: abort.signal };
    response = await fetch(new URL(path, ROOT), { ...options, cache: "no-store", credentials: "same-origin" });
  } catch {
    throw new Failure(0, signal?.aborted ? "cancelled" : "no answer from the server");
  } finally {
    clearTimeout(timer);
  }
  if (response.ok) return response;
  const text = await response.text().catch(() => "");
  throw new Failure(response.status, text.trim() || response.statusText, response.headers.get("ETag"));
}

/** The text of an answer that has to arrive whole. */
export async function text(path, options) {
  const response = await request(path, options);
  try {
    return await response.text();
  } catch {
    throw new Failure(0, "the answer was cut off");
  }
}

// Values --------------------------------------------------------------------------------------------------

const keyPath = (key) => `kv/${encodeURIComponent(key)}`;

/** Reads a value, or, when it is large, its beginning: {etag, size, bytes, isWhole}. */
export async function readValue(key) {
  const abort = new AbortController();
  const response = await request(keyPath(key), { signal: abort.signal });
  const etag = response.headers.get("ETag");
  const size = Number(response.headers.get("Content-Length"));
  try {
    if (size <= WHOLE_BYTES) {
      const bytes = new Uint8Array(await response.arrayBuffer());
      return { etag, size: bytes.length, bytes, isWhole: true };
    }
    const bytes = await beginning(response.body, BEGINNING_BYTES);
    abort.abort(); // the rest need not be sent
    return { etag, size, bytes, isWhole: false };
  } catch {
    throw new Failure(0, "the value was cut off on its way");
  }
}

async function beginning(stream, count) {
  const bytes = new Uint8Array(count);
  const reader = stream.getReader();
  let filled = 0;
  while (filled < count) {
    const { done, value } = await reader.read();
    if (done) break;
    const piece = value.subarray(0, count - filled);
    bytes.set(piece, filled);
    filled += piece.length;
  }
  return bytes.subarray(0, filled);
}

/** A whole value as a file of the browser, whatever its size. */
export async function download(key) {
  const response = await request(keyPath(key));
  try {
    return await response.blob();
  } catch {
    throw new Failure(0, "the value was cut off on its way");
  }
}

/** Stores a value if the key still has the value with this tag; with null, if there is no such key. Returns its tag. */
export async function store(key, value, etag) {
  const headers = { "Content-Type": "text/plain; charset=utf-8", ...condition(etag) };
  const response = await request(keyPath(key), { method: "PUT", body: value, headers });
  return response.headers.get("ETag");
}

/** Removes a key if it still has the value with this tag. */
export async function remove(key, etag) {
  await request(keyPath(key), { method: "DELETE", headers: condition(etag) });
}

const condition = (etag) => (etag === null ? { "If-None-Match": "*" } : { "If-Match": etag });

/** A page of keys: those that begin with `prefix`, after `after`: {keys, hasMore}. */
export async function listKeys(prefix, after, limit) {
  const query = new URLSearchParams({ limit });
  if (prefix) query.set("prefix", prefix);
  if (after) query.set("after", after);
  const response = await request(`keys?${query}`);
  const hasMore = /;\s*rel="?next"?/.test(response.headers.get("Link") ?? "");
  const lines = (await response.text()).split("\n");
  return { keys: lines.slice(0, -1), hasMore };
}
