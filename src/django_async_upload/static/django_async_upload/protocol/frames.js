/**
 * The frame: one WebSocket binary message, a 16-byte header and a payload.
 *
 *      0        1        2                                        8                12              16
 *     +--------+--------+----------------------------------------+----------------+----------------+
 *     | type   | flags  | offset (48 bits)                       | stream         | CRC-32C        |
 *     +--------+--------+----------------------------------------+----------------+----------------+
 *
 * Integers are big-endian; the CRC covers the first 12 bytes and the payload. An offset of 48 bits fits a double.
 */
import { combine, crc32c } from "./crc32c.js";
import { UploadError } from "./errors.js";

export const SUBPROTOCOL = "async-upload.v1";

export const HEADER_SIZE = 16;
/** Bytes. */
export const MAX_FRAME = 1024 * 1024;
/** Bytes of payload of a DATA frame. */
export const MAX_CHUNK = MAX_FRAME - 4096;
/** Bytes of payload of a control frame. */
export const MAX_CONTROL = 64 * 1024;
/** Objects and arrays within each other in a control payload, the payload itself being the first. */
export const MAX_DEPTH = 32;
export const MAX_OFFSET = 2 ** 48 - 1;

/** DATA only: the first frame after a REWIND. */
export const RESTART = 0x01;

const CHECKED = 12;
const TWO_32 = 2 ** 32;

/** Below 0x40 from the client, from 0x80 on from the server, between them from both. */
export const TYPES = Object.freeze({
  DATA: 0x01,
  AUTH: 0x02,
  CREATE: 0x03,
  ATTACH: 0x04,
  PROOF: 0x05,
  FINISH: 0x06,
  CANCEL: 0x07,
  RELEASE: 0x08,
  PAUSED: 0x09,
  QUERY: 0x0a,
  WATCH: 0x0b,
  PING: 0x40,
  PONG: 0x41,
  HELLO: 0x80,
  AUTHENTICATED: 0x81,
  CREATED: 0x82,
  ATTACHED: 0x83,
  READY: 0x84,
  ACK: 0x85,
  REWIND: 0x86,
  PAUSE: 0x87,
  PROGRESS: 0x88,
  COMPLETED: 0x89,
  CANCELLED: 0x8a,
  RELEASED: 0x8b,
  STATUS: 0x8c,
  LIMIT: 0x8d,
  DRAIN: 0x8e,
  ERROR: 0x8f,
  CHANGED: 0x90,
});

/** @typedef {keyof typeof TYPES} FrameType */
/**
 * @typedef {object} Header
 * @property {FrameType} type
 * @property {number} flags
 * @property {number} offset bytes from the start of the file; 0 in control frames
 * @property {number} stream 0 is the connection itself
 * @property {number} crc
 */

const NAMES = /** @type {Map<number, FrameType>} */ (
  new Map(Object.entries(TYPES).map(([name, type]) => [type, name]))
);

/** @param {string} reason */
export function malformed(reason) {
  return new UploadError("malformed_frame", {
    message: `Not a frame of this protocol: ${reason}.`,
    facts: { reason },
  });
}

/**
 * Take a frame apart. The CRC is not checked here: see {@link isIntact}.
 *
 * @param {Uint8Array} frame
 * @returns {Header}
 * @throws {UploadError} `malformed_frame` for anything that no version-1 peer sends
 */
export function parseHeader(frame) {
  const size = frame.length;
  if (size < HEADER_SIZE) {
    throw malformed(`${size} bytes are shorter than a header`);
  }
  if (size > MAX_FRAME) {
    throw malformed(`${size} bytes are more than ${MAX_FRAME}`);
  }
  const view = new DataView(frame.buffer, frame.byteOffset, HEADER_SIZE);
  const type = NAMES.get(frame[0]);
  if (type === undefined) {
    throw malformed(`type ${frame[0]} is not known`);
  }
  const flags = frame[1];
  const offset = view.getUint16(2) * TWO_32 + view.getUint32(4);
  if (type === "DATA") {
    if (flags !== 0 && flags !== RESTART) {
      throw malformed(`flags ${flags} are not known`);
    }
    if (size === HEADER_SIZE || size > HEADER_SIZE + MAX_CHUNK) {
      throw malformed(`${size - HEADER_SIZE} bytes are no chunk`);
    }
  } else if (flags !== 0 || offset !== 0) {
    throw malformed("flags and offset are 0 in a control frame");
  } else if (size > HEADER_SIZE + MAX_CONTROL) {
    throw malformed(`a control payload has at most ${MAX_CONTROL} bytes`);
  }
  return { type, flags, offset, stream: view.getUint32(8), crc: view.getUint32(12) };
}

/**
 * Whether the CRC in the header is that of the frame, which has at least a header.
 *
 * @param {Uint8Array} frame
 */
export function isIntact(frame) {
  const expected = new DataView(frame.buffer, frame.byteOffset).getUint32(CHECKED);
  return crc32c(frame.subarray(HEADER_SIZE), crc32c(frame.subarray(0, CHECKED))) === expected;
}

/**
 * The 16 bytes that go before a payload, from the payload's CRC alone: its bytes need not be there.
 *
 * @param {FrameType} type
 * @param {number} stream
 * @param {number} size bytes of the payload
 * @param {number} crc CRC-32C of the payload
 * @param {{offset?: number, flags?: number}} [place]
 */
export function buildHeader(type, stream, size, crc, { offset = 0, flags = 0 } = {}) {
  const header = new Uint8Array(HEADER_SIZE);
  const view = new DataView(header.buffer);
  header[0] = TYPES[type];
  header[1] = flags;
  view.setUint16(2, Math.floor(offset / TWO_32));
  view.setUint32(4, offset % TWO_32);
  view.setUint32(8, stream);
  view.setUint32(CHECKED, combine(crc32c(header.subarray(0, CHECKED)), crc, size));
  return header;
}

/**
 * A header and its payload in one piece.
 *
 * @param {Uint8Array} header
 * @param {Uint8Array} payload
 */
export function join(header, payload) {
  const frame = new Uint8Array(header.length + payload.length);
  frame.set(header);
  frame.set(payload, header.length);
  return frame;
}

const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const LONE_SURROGATE = /\p{Surrogate}/u;

/**
 * A control frame: the payload is one JSON object in UTF-8. Fields that are undefined are left out.
 *
 * @param {FrameType} type
 * @param {number} stream
 * @param {Record<string, unknown>} fields
 * @throws {RangeError} where the fields are not JSON: NaN, lone surrogates, too large
 * @throws {TypeError} where they are no JSON at all
 */
export function buildControl(type, stream, fields) {
  const payload = encoder.encode(JSON.stringify(fields, refuseUnwritable));
  if (payload.length > MAX_CONTROL) {
    throw new RangeError(`${payload.length} bytes do not fit a control frame`);
  }
  return join(buildHeader(type, stream, payload.length, crc32c(payload)), payload);
}

/**
 * @param {string} key
 * @param {unknown} value
 */
function refuseUnwritable(key, value) {
  if (typeof value === "number" && !Number.isFinite(value)) {
    throw new RangeError(`${value} is not a number of JSON`);
  }
  if (LONE_SURROGATE.test(key) || (typeof value === "string" && LONE_SURROGATE.test(value))) {
    throw new RangeError("half a surrogate pair is no character");
  }
  return value;
}

/**
 * The fields of a control frame, and the names of those that are numbers written with a fraction or an exponent: JavaScript
 * does not tell 1.0 from 1, the protocol does.
 *
 * @typedef {{values: Record<string, unknown>, fractions: ReadonlySet<string>}} Fields
 */

/** A string, a bracket or a number: all that has to be seen to know depth, place and spelling of a number. */
const TOKEN = /"(?:[^"\\]|\\.)*"|[[\]{}]|-?\d[\d.eE+-]*/g;

/**
 * The JSON object of a control frame, its CRC checked.
 *
 * @param {Uint8Array} frame
 * @returns {Fields}
 * @throws {UploadError} `corrupt_frame`, `malformed_frame`
 */
export function parseFields(frame) {
  if (!isIntact(frame)) {
    throw new UploadError("corrupt_frame");
  }
  let text, values;
  try {
    text = decoder.decode(frame.subarray(HEADER_SIZE));
    values = JSON.parse(text);
  } catch (cause) {
    throw malformed("the payload is not JSON");
  }
  if (typeof values !== "object" || values === null || Array.isArray(values)) {
    throw malformed("the payload is not a JSON object");
  }
  return { values, fractions: scan(text) };
}

/**
 * What JSON.parse does not say of a text that is JSON.
 *
 * @param {string} text
 * @returns {Set<string>} see {@link Fields}
 */
function scan(text) {
  /** @type {Set<string>} */
  const fractions = new Set();
  let depth = 0;
  let before = "";
  for (const [token] of text.matchAll(TOKEN)) {
    if (token === "{" || token === "[") {
      if (++depth > MAX_DEPTH) {
        throw malformed(`the payload is nested deeper than ${MAX_DEPTH}`);
      }
    } else if (token === "}" || token === "]") {
      depth--;
    } else if (token[0] !== '"') {
      if (!Number.isFinite(Number(token))) {
        throw malformed(`${token.slice(0, 20)} is beyond a double`);
      }
      if (depth === 1) {
        // In an object a number comes behind its key; of a key that comes twice the last counts.
        const key = JSON.parse(before);
        if (/[.eE]/.test(token)) {
          fractions.add(key);
        } else {
          fractions.delete(key);
        }
      }
    }
    before = token;
  }
  return fractions;
}

/**
 * A CRC as the fields spell it: 8 lower-case hex digits.
 *
 * @param {number} crc
 */
export function toHex(crc) {
  return crc.toString(16).padStart(8, "0");
}
