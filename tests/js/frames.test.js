// The frames of the vectors, built and parsed; the CRC that they carry.
import assert from "node:assert/strict";
import { test } from "node:test";
import { ClientProtocol } from "../../src/django_async_upload/static/django_async_upload/protocol/client.js";
import {
  combine,
  crc32c,
} from "../../src/django_async_upload/static/django_async_upload/protocol/crc32c.js";
import {
  MAX_CHUNK,
  MAX_CONTROL,
  TYPES,
  buildControl,
  isIntact,
  parseFields,
  parseHeader,
  toHex,
} from "../../src/django_async_upload/static/django_async_upload/protocol/frames.js";
import { buildMessage } from "../../src/django_async_upload/static/django_async_upload/protocol/messages.js";
import { parseMessage } from "./messages.js";
import { FRAMES, fromHex, invalidFrame, pattern, withHeader } from "./vectors.js";

const HELLO = { connection_limit: 2 ** 40, stream_limit: 2 ** 40, max_streams: 8 };

for (const vector of FRAMES.crc32c) {
  test(`the CRC is Castagnoli's: ${vector.about}`, () => {
    const bytes = vector.text ? new TextEncoder().encode(vector.text) : fromHex(vector.hex);
    assert.equal(toHex(crc32c(bytes)), vector.crc32c);
    const [head, tail] = [bytes.subarray(0, 3), bytes.subarray(3)];
    assert.equal(toHex(crc32c(tail, crc32c(head))), vector.crc32c);
    assert.equal(toHex(combine(crc32c(head), crc32c(tail), tail.length)), vector.crc32c);
  });
}

test("a pattern is the same file from wherever it is read", () => {
  for (const { pattern: seed, start, stop, crc32c: crc, hex } of FRAMES.patterns) {
    const bytes = pattern(seed, start, stop);
    assert.equal(toHex(crc32c(bytes)), crc);
    assert.equal(Buffer.from(bytes).toString("hex"), hex ?? Buffer.from(bytes).toString("hex"));
  }
});

for (const { stream, offset, flags, payload, frame } of FRAMES.data) {
  test(`a DATA frame is built and parsed: stream ${stream}, offset ${offset}, flags ${flags}`, () => {
    const built = withHeader("DATA", stream, fromHex(payload), { offset, flags });
    assert.equal(Buffer.from(built).toString("hex"), frame);
    // Wherever in a buffer it stands.
    const shifted = new Uint8Array(built.length + 3).subarray(3);
    shifted.set(built);
    for (const parsed of [built, shifted]) {
      const { crc, ...place } = parseHeader(parsed);
      assert.deepEqual(place, { type: "DATA", stream, offset, flags });
      assert.ok(isIntact(parsed));
    }
  });
}

for (const { type, stream, fields, frame } of FRAMES.control) {
  test(`a control frame is built: ${type} ${JSON.stringify(fields).slice(0, 60)}`, () => {
    const built = parseFields(buildControl(type, stream, fields));
    assert.deepEqual(built.values, JSON.parse(Buffer.from(frame, "hex").subarray(16).toString()));
  });
}

for (const { about, type, stream, fields, frame } of [...FRAMES.control, ...FRAMES.spellings]) {
  test(`a control frame is parsed and says the same when it is built again: ${about ?? type}`, () => {
    const bytes = fromHex(frame);
    const header = parseHeader(bytes);
    assert.deepEqual([header.type, header.stream], [type, stream]);
    const message = parseMessage(type, parseFields(bytes));
    for (const [name, value] of Object.entries(fields)) {
      assert.deepEqual(message[name], value);
    }
    const again = buildMessage(stream, message);
    assert.deepEqual(parseMessage(type, parseFields(again)), message);
  });
}

test("there is a vector for every message", () => {
  const types = new Set([...FRAMES.control, ...FRAMES.data].map((vector) => vector.type));
  assert.deepEqual([...types].sort(), Object.keys(TYPES).sort());
});

function parseWhole(bytes) {
  const { type } = parseHeader(bytes);
  if (type !== "DATA") {
    parseMessage(type, parseFields(bytes));
  } else if (!isIntact(bytes)) {
    throw Object.assign(new Error("damaged"), { code: "corrupt_frame" });
  }
}

for (const vector of FRAMES.invalid) {
  test(`an invalid frame is refused: ${vector.about}`, () => {
    const bytes = invalidFrame(vector);
    assert.throws(
      () => parseWhole(bytes),
      ({ code }) => code === vector.code || code === "malformed_frame",
    );
    if (bytes[0] < 0x80 && vector.code !== "corrupt_frame") {
      return; // a server does not say it, however it is spelled
    }
    const client = new ClientProtocol();
    if (bytes[0] !== TYPES.HELLO) {
      client.receive(buildMessage(0, { type: "HELLO", ...HELLO }));
    }
    assert.throws(() => client.receive(bytes), { name: "UploadError", code: vector.code });
  });
}

for (const fields of [
  { retry_after: NaN },
  { retry_after: Infinity },
  { server: "\ud800" },
  { facts: { "\udfff": 1 } },
  { server: "x".repeat(MAX_CONTROL) },
]) {
  test(`what is not JSON is not built: ${JSON.stringify(fields).slice(0, 40)}`, () => {
    assert.throws(() => buildControl("ERROR", 0, fields), RangeError);
  });
}

test("the largest frames are good", () => {
  assert.equal(parseHeader(withHeader("DATA", 1, new Uint8Array(MAX_CHUNK))).type, "DATA");
  const spaces = new TextEncoder().encode(`{${" ".repeat(MAX_CONTROL - 2)}}`);
  assert.deepEqual(parseFields(withHeader("PING", 0, spaces)).values, {});
});

test("brackets, quotes and numbers inside of strings are no structure", () => {
  const fields = { message: 'a "1.5" \\ [[{' + "[".repeat(40), code: "x", retryable: false, retry_after: 1.5 };
  const message = parseMessage("ERROR", parseFields(buildControl("ERROR", 0, fields)));
  assert.deepEqual(message, { type: "ERROR", facts: {}, ...fields });
});

function completed(more) {
  const fields = {
    upload: "5d3c7f3e-8a1b-4c52-9f0e-2b64a7d1c9e0",
    name: "a",
    size: 0,
    crc32c: "00000000",
    stored_as: "a",
  };
  return parseMessage("COMPLETED", parseFields(buildControl("COMPLETED", 1, { ...fields, ...more })));
}

test("the receipt of a completed upload is read, and may be missing", () => {
  assert.equal(completed({}).receipt, undefined);
  assert.equal(completed({ receipt: "x:y" }).receipt, "x:y");
  assert.equal(completed({ receipt: "x".repeat(4096) }).receipt.length, 4096);
  assert.throws(() => completed({ receipt: "x".repeat(4097) }), { code: "malformed_frame" });
  assert.throws(() => completed({ receipt: null }), { code: "malformed_frame" });
});

test("the app's answer is an object as it was sent, and may be missing", () => {
  assert.equal(completed({}).response, undefined);
  const response = { document: 7, tags: ["a", null, 1.5], "größe": { ja: true } };
  assert.deepEqual(completed({ response }).response, response);
  for (const wrong of [null, [], "{}", 1]) {
    assert.throws(() => completed({ response: wrong }), { code: "malformed_frame" });
  }
});

test("a flipped bit anywhere in a frame is seen", () => {
  const written = withHeader("DATA", 1, new TextEncoder().encode("hello, world"), { offset: 1000 });
  for (let bit = 0; bit < written.length * 8; bit++) {
    const damaged = written.slice();
    damaged[bit >> 3] ^= 1 << (bit & 7);
    assert.ok(!isIntact(damaged));
  }
});
