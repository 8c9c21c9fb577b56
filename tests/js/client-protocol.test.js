// What the client's half of the protocol refuses to say, and what it does not believe.
import assert from "node:assert/strict";
import { test } from "node:test";
import { ClientProtocol } from "../../src/django_async_upload/static/django_async_upload/protocol/client.js";
import { parseFields, parseHeader } from "../../src/django_async_upload/static/django_async_upload/protocol/frames.js";
import { buildMessage } from "../../src/django_async_upload/static/django_async_upload/protocol/messages.js";

const UPLOAD = "5d3c7f3e-8a1b-4c52-9f0e-2b64a7d1c9e0";
const MIB = 1024 * 1024;

/** A connection with one stream that CREATE has opened. */
function begin(hello = {}) {
  const protocol = new ClientProtocol();
  const fields = { version: 1, connection_limit: 1000, stream_limit: 600, max_streams: 4, window: 500, ...hello };
  protocol.receive(buildMessage(0, { type: "HELLO", ...fields }));
  const [stream] = protocol.sendCreate({ key: "0".repeat(32), name: "a.bin" });
  const hear = (type, message) => protocol.receive(buildMessage(stream.id, { type, ...message }));
  return { protocol, stream, hear, send: (size) => protocol.sendChunk(stream.id, size, 0) };
}

function assertRefuses(call, code, { protocol, stream }) {
  const before = [stream.sent, stream.state, protocol.sent, protocol.inFlight];
  assert.throws(call, (error) => error.code === code);
  assert.deepEqual([stream.sent, stream.state, protocol.sent, protocol.inFlight], before);
}

test("nothing is sent beyond the limit of a stream", () => {
  const opened = begin();
  assertRefuses(() => opened.send(601), "flow_control", opened);
  opened.send(600);
  assertRefuses(() => opened.send(1), "flow_control", opened);
  assert.equal(opened.protocol.credit(opened.stream.id), 0);
});

test("nothing is sent beyond the limit of the connection", () => {
  const opened = begin({ stream_limit: 2000 });
  assertRefuses(() => opened.send(1001), "flow_control", opened);
  opened.send(1000);
  opened.protocol.receive(buildMessage(0, { type: "LIMIT", limit: 1100 }));
  assertRefuses(() => opened.send(101), "flow_control", opened);
  opened.send(100);
});

test("a limit is followed as far as the client can keep what is not durable", () => {
  const { stream, hear, send } = begin();
  hear("CREATED", { upload: UPLOAD, name: "a.bin", limit: 2 ** 40, chunk: 16384 });
  assert.equal(stream.limit, 32 * MIB);
  send(100);
  hear("ACK", { received: 100, durable: 50, limit: 2 ** 40, chunk: 16384 });
  assert.equal(stream.limit, 32 * MIB + 50);
});

test("after PAUSE nothing is sent until an ACK brings credit", () => {
  const opened = begin();
  const { protocol, stream, hear, send } = opened;
  hear("CREATED", { upload: UPLOAD, name: "a.bin", limit: 600, chunk: 100 });
  send(100);
  hear("PAUSE", { code: "busy" });
  const [paused] = protocol.replies();
  assert.deepEqual([parseHeader(paused).type, parseFields(paused).values], ["PAUSED", { offset: 100 }]);
  assertRefuses(() => send(1), "flow_control", opened);
  hear("ACK", { received: 100, durable: 0, limit: 300, chunk: 100 });
  assert.equal(protocol.credit(stream.id), 200);
});

test("FINISH says how much was sent, and nothing else", () => {
  const opened = begin();
  opened.send(100);
  const finish = (size) => () => opened.protocol.sendFinish(opened.stream.id, { size, crc32c: "0".repeat(8) });
  assertRefuses(finish(99), "size_mismatch", opened);
  assertRefuses(finish(101), "size_mismatch", opened);
  finish(100)();
  assert.equal(opened.stream.state, "creating-finished");
});
