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

/** The server answered with an error, or not at all: then `status` is 0. The message is for people. */
export class Failure extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

/**
 * Sends a request; resolves to {headers, body} when the status is good, and raises a Failure otherwise. The body is a
 * Blob, of `bytesMax(headers)` bytes at most; the rest need not be sent. It fails when nothing arrives for `timeoutMs`.
 */
export async function request(path, { method = "GET", body, headers = {}, timeoutMs = TIMEOUT_MS, bytesMax } = {}) {
  const silence = new Silence(timeoutMs);
  const authorization = token ? { Authorization: `Bearer ${token}` } : {};
  const options = { method, body, headers: { ...authorization, ...headers }, signal: silence.signal };
  try {
    const response = await fetch(new URL(path, ROOT), { ...options, cache: "no-store", credentials: "same-origin" });
    const received = await receive(response, bytesMax?.(response.headers) ?? Infinity, silence);
    if (response.ok && received) return { headers: response.headers, body: received };
    if (response.ok) throw new Failure(0, "the answer was cut off");
    throw new Failure(response.status, (await received?.text())?.trim() || response.statusText);
  } catch (error) {
    throw error instanceof Failure ? error : new Failure(0, "no answer from the server");
  } finally {
    silence.end();
  }
}

/** Aborts a request when nothing has arrived for some time. */
class Silence {
  #abort = new AbortController();
  #timer;

  constructor(timeoutMs) {
    this.timeoutMs = timeoutMs;
    this.signal = this.#abort.signal;
    this.begin();
  }

  begin() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#abort.abort(), this.timeoutMs);
  }

  /** Ends the request too, where it has not ended. */
  end() {
    clearTimeout(this.#timer);
    this.#abort.abort();
  }
}

/** The beginning of a body; null when it was cut off. */
async function receive(response, bytesMax, silence) {
  const pieces = [];
  const reader = response.body?.getReader();
  let left = bytesMax;
  try {
    while (reader && left > 0) {
      const { done, value } = await reader.read();
      if (done) break;
      silence.begin();
      pieces.push(value.subarray(0, left));
      left -= pieces.at(-1).length;
    }
  } catch {
    return null;
  }
  return new Blob(pieces);
}

/** The text of an answer. */
export async function text(path, options) {
  return (await request(path, options)).body.text();
}

// Values --------------------------------------------------------------------------------------------------

/** The path of a key, but for the two that a browser takes for directories, however they are written. */
function keyPath(key) {
  if (key === "." || key === "..") throw new Failure(null, `A browser cannot ask for the key “${key}”. Use curl.`);
  return `kv/${encodeURIComponent(key)}`;
}

/** Reads a value, or, when it is large, its beginning: {etag, size, bytes, isWhole}. */
export async function readValue(key) {
  const length = (headers) => Number(headers.get("Content-Length"));
  const bytesMax = (headers) => (length(headers) > WHOLE_BYTES ? BEGINNING_BYTES : Infinity);
  const { headers, body } = await request(keyPath(key), { bytesMax });
  const bytes = new Uint8Array(await body.arrayBuffer());
  const size = Math.max(length(headers), bytes.length); // a proxy may leave the length out
  return { etag: headers.get("ETag"), size, bytes, isWhole: bytes.length === size };
}

/** A whole value as a Blob, whatever its size. */
export async function download(key) {
  return (await request(keyPath(key))).body;
}

/** Stores a value if the key still has the value with this tag; with null, if there is no such key. */
export async function store(key, value, etag) {
  const headers = { "Content-Type": "text/plain; charset=utf-8", ...condition(etag) };
  await request(keyPath(key), { method: "PUT", body: value, headers });
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
  const { headers, body } = await request(`keys?${query}`);
  const hasMore = /;\s*rel="?next"?/.test(headers.get("Link") ?? "");
  const lines = (await body.text()).split("\n");
  return { keys: lines.slice(0, -1), hasMore };
}
