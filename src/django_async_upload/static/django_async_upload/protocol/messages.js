/**
 * The control messages: their fields, which are the JSON fields by name, and what those of a server must look like. A field that
 * is not known is ignored. CRCs and digests are lower-case hex strings, integers are 0 to 2^48 - 1, sizes and offsets are bytes,
 * times are seconds. The tables are those of `docs/reference/protocol.md`.
 */
import { MAX_CHUNK, MAX_FRAME, MAX_OFFSET, TYPES, buildControl, malformed } from "./frames.js";

/** @typedef {Exclude<import( "./frames.js").FrameType, "DATA">} MessageType */

/**
 * @typedef {{type: "AUTH", ticket?: string}} Auth
 * @typedef {{type: "CREATE", key: string, name: string, size?: number, content_type?: string, digest?: string,
 *   metadata?: Record<string, unknown>}} Create
 * @typedef {{type: "ATTACH", upload: string}} Attach
 * @typedef {{type: "PROOF", durable_crc32c: string, received_crc32c?: string}} Proof
 * @typedef {{type: "FINISH", size: number, crc32c: string, digests?: Record<string, string>}} Finish
 * @typedef {{type: "CANCEL", upload?: string, finished?: boolean}} Cancel
 * @typedef {{type: "RELEASE"}} Release
 * @typedef {{type: "PAUSED", offset: number}} Paused
 * @typedef {{type: "QUERY", upload: string}} Query
 * @typedef {{type: "WATCH", scope: "uploads" | "own" | "all", uploads?: string[]}} Watch
 * @typedef {{type: "PING" | "PONG", nonce: number}} Heartbeat
 * @typedef {{type: "HELLO", connection_limit: number, stream_limit: number, max_streams: number, version: number,
 *   max_frame: number, max_chunk: number, window: number, digests: string[], authenticated: boolean,
 *   auth_timeout: number, heartbeat: number, server: string, address?: string}} Hello
 * @typedef {{type: "AUTHENTICATED", user?: string, expires_in?: number}} Authenticated
 * @typedef {{type: "CREATED", upload: string, name: string, limit: number, chunk: number}} Created
 * @typedef {{type: "ATTACHED", upload: string, name: string, durable: number, received: number, size?: number,
 *   digest?: string}} Attached
 * @typedef {{type: "READY", offset: number, durable: number, limit: number, chunk: number}} Ready
 * @typedef {{type: "ACK", received: number, durable: number, limit: number, chunk: number}} Ack
 * @typedef {{type: "REWIND", offset: number, durable: number, limit: number, code: string}} Rewind
 * @typedef {{type: "PAUSE", code: string}} Pause
 * @typedef {{type: "PROGRESS", phase: string, done: number, total: number}} Progress
 * @typedef {{type: "COMPLETED", upload: string, name: string, size: number, crc32c: string, stored_as: string,
 *   digests: Record<string, string>, receipt?: string, response?: Record<string, unknown>}} Completed
 * @typedef {{type: "CANCELLED", upload: string}} Cancelled
 * @typedef {{type: "RELEASED", durable: number}} Released
 * @typedef {{type: "STATUS", upload: string, state: string, name: string, durable: number, size?: number,
 *   stored_as?: string, error?: string, received?: number}} Status
 * @typedef {{type: "CHANGED", standings: Omit<Status, "type">[], missing: string[]}} Changed
 * @typedef {{type: "LIMIT", limit: number}} Limit
 * @typedef {{type: "DRAIN", retry_after: number}} Drain
 * @typedef {{type: "ERROR", code: string, message: string, retryable: boolean, retry_after?: number,
 *   facts: Record<string, unknown>}} ErrorMessage
 *
 * @typedef {Auth | Create | Attach | Proof | Finish | Cancel | Release | Paused | Query | Watch | Heartbeat | Hello | Authenticated
 *   | Created | Attached | Ready | Ack | Rewind | Pause | Progress | Completed | Cancelled | Released | Status | Changed | Limit
 *   | Drain | ErrorMessage} Message
 */

/** Digest algorithms (names as in RFC 9530) and their lengths in hex digits. */
const DIGESTS = /** @type {Record<string, number>} */ (Object.freeze({ "sha-256": 64 }));

/**
 * @typedef {(value: unknown) => boolean} Rule
 * @typedef {{accepts: Rule, optional: boolean, byDefault?: () => unknown}} Field
 */

/** @type {Rule} */
export const integer = (value) =>
  typeof value === "number" && Number.isInteger(value) && value >= 0 && value <= MAX_OFFSET;
/** @type {Rule} */
const seconds = (value) => typeof value === "number" && value >= 0 && value < 1e9;
/** @type {Rule} */
export const boolean = (value) => typeof value === "boolean";
/** @type {Rule} */
const string = (value) => typeof value === "string";
/** @type {Rule} */
export const object = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
/** @type {Rule} */
export const algorithm = (value) => typeof value === "string" && Object.hasOwn(DIGESTS, value);
/** @type {Rule} */
const strings = (value) => Array.isArray(value) && value.every(string);
/** @type {Rule} */
export const digests = (value) =>
  object(value) &&
  Object.entries(/** @type {object} */ (value)).every(
    ([name, digest]) =>
      algorithm(name) &&
      typeof digest === "string" &&
      digest.length === DIGESTS[name] &&
      /^[0-9a-f]+$/.test(digest),
  );

/**
 * Characters are Unicode code points: at most two UTF-16 units each.
 *
 * @param {number} least
 * @param {number} most
 * @returns {Rule}
 */
export const text = (least, most) => (value) =>
  typeof value === "string" &&
  value.length >= least &&
  (value.length <= most || (value.length <= 2 * most && [...value].length <= most));

/**
 * @param {RegExp} pattern
 * @returns {Rule}
 */
export const matching = (pattern) => (value) => typeof value === "string" && pattern.test(value);
export const crc = matching(/^[0-9a-f]{8}$/);
export const uuid = matching(/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);

/** @param {Rule} accepts @returns {Field} */
export const needed = (accepts) => ({ accepts, optional: false });
/**
 * @param {Rule} accepts
 * @param {() => unknown} [byDefault] left out where the field then has no value
 * @returns {Field}
 */
export const maybe = (accepts, byDefault) => ({ accepts, optional: true, byDefault });

/** @type {Record<string, Field>} */
const STATUS = {
  upload: needed(uuid),
  state: needed(string),
  name: needed(text(1, 1024)),
  durable: needed(integer),
  size: maybe(integer),
  stored_as: maybe(string),
  error: maybe(string),
  received: maybe(integer),
};
/** @type {Rule} */
export const uploads = (value) => Array.isArray(value) && value.length <= 1000 && value.every(uuid);
/** @type {Rule} */
const standings = (value) =>
  Array.isArray(value) &&
  value.every(
    (each) =>
      object(each) &&
      Object.entries(STATUS).every(([name, { accepts, optional }]) =>
        Object.hasOwn(each, name) ? accepts(each[name]) : optional,
      ),
  );

/** What a server sends. @type {Readonly<Partial<Record<MessageType, Record<string, Field>>>>} */
const FROM_SERVER = {
  PING: { nonce: maybe(integer, () => 0) },
  PONG: { nonce: maybe(integer, () => 0) },
  HELLO: {
    connection_limit: needed(integer),
    stream_limit: needed(integer),
    max_streams: needed((value) => integer(value) && value !== 0),
    version: maybe(integer, () => 1),
    max_frame: maybe(integer, () => MAX_FRAME),
    max_chunk: maybe(
      (value) => integer(value) && Number(value) > 0 && Number(value) <= MAX_CHUNK,
      () => MAX_CHUNK,
    ),
    window: maybe(integer, () => 8 * 1024 * 1024),
    digests: maybe(strings, () => Object.keys(DIGESTS)),
    authenticated: maybe(boolean, () => true),
    auth_timeout: maybe(seconds, () => 5),
    heartbeat: maybe(seconds, () => 20),
    server: maybe(string, () => ""),
    address: maybe(string),
  },
  AUTHENTICATED: { user: maybe(string), expires_in: maybe(seconds) },
  CREATED: {
    upload: needed(uuid),
    name: needed(text(1, 1024)),
    limit: needed(integer),
    chunk: needed(integer),
  },
  ATTACHED: {
    upload: needed(uuid),
    name: needed(text(1, 1024)),
    durable: needed(integer),
    received: needed(integer),
    size: maybe(integer),
    digest: maybe(algorithm),
  },
  READY: {
    offset: needed(integer),
    durable: needed(integer),
    limit: needed(integer),
    chunk: needed(integer),
  },
  ACK: {
    received: needed(integer),
    durable: needed(integer),
    limit: needed(integer),
    chunk: needed(integer),
  },
  REWIND: {
    offset: needed(integer),
    durable: needed(integer),
    limit: needed(integer),
    code: needed(string),
  },
  PAUSE: { code: maybe(string, () => "busy") },
  PROGRESS: { phase: needed(string), done: needed(integer), total: needed(integer) },
  COMPLETED: {
    upload: needed(uuid),
    name: needed(text(1, 1024)),
    size: needed(integer),
    crc32c: needed(crc),
    stored_as: needed(string),
    digests: maybe(digests, () => ({})),
    receipt: maybe(text(0, 4096)),
    response: maybe(object),
  },
  CANCELLED: { upload: needed(uuid) },
  RELEASED: { durable: needed(integer) },
  STATUS,
  CHANGED: { standings: needed(standings), missing: maybe(uploads, () => []) },
  LIMIT: { limit: needed(integer) },
  DRAIN: { retry_after: maybe(seconds, () => 1) },
  ERROR: {
    code: needed(string),
    message: needed(string),
    retryable: needed(boolean),
    retry_after: maybe(seconds),
    facts: maybe(object, () => ({})),
  },
};

/**
 * @param {MessageType} type
 * @param {import( "./frames.js").Fields} fields
 * @param {typeof FROM_SERVER} [schemas] with those of the type
 * @returns {Message} with the defaults of the fields that are not there
 * @throws {import( "./errors.js").UploadError} `malformed_frame`, naming the first field that is missing or wrong
 */
export function parseMessage(type, { values, fractions }, schemas = FROM_SERVER) {
  /** @type {Record<string, unknown>} */
  const message = { type };
  for (const [name, { accepts, optional, byDefault }] of Object.entries(/** @type {Record<string, Field>} */ (schemas[type]))) {
    if (Object.hasOwn(values, name)) {
      const value = values[name];
      if (!accepts(value) || (fractions.has(name) && accepts !== seconds)) {
        throw malformed(`${type}: ${name} is not valid`);
      }
      message[name] = value;
    } else if (!optional) {
      throw malformed(`${type}: ${name} is missing`);
    } else if (byDefault) {
      message[name] = byDefault();
    }
  }
  return /** @type {Message} */ (message);
}

/**
 * @param {number} stream
 * @param {Message} message
 * @returns {Uint8Array<ArrayBuffer>}
 * @throws {RangeError | TypeError} where it cannot be written: see {@link buildControl}
 */
export function buildMessage(stream, message) {
  const { type, ...fields } = message;
  return buildControl(type, stream, fields);
}

/**
 * Whether only a client sends it.
 *
 * @param {import( "./frames.js").FrameType} type
 */
export function isFromClient(type) {
  return TYPES[type] < TYPES.PING;
}
