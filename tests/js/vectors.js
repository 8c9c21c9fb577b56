// The vectors that every implementation shares: see tests/vectors/README.md.
import { readFileSync, readdirSync } from "node:fs";
import { crc32c } from "../../src/django_async_upload/static/django_async_upload/protocol/crc32c.js";
import {
  buildControl,
  buildHeader,
  join,
} from "../../src/django_async_upload/static/django_async_upload/protocol/frames.js";

const FOLDER = new URL("../vectors/", import.meta.url);

const read = (name) => JSON.parse(readFileSync(new URL(name, FOLDER), "utf-8"));

export const FRAMES = read("frames.json");

export const ENDINGS = read("endings.json");

export const TRANSCRIPTS = readdirSync(new URL("transcripts", FOLDER))
  .sort()
  .map((file) => ({ name: file.replace(".json", ""), ...read(`transcripts/${file}`) }));

export const fromHex = (hex) => Uint8Array.from(Buffer.from(hex, "hex"));

/** The bytes `start` to `stop` of the file number `seed`: at position p, (seed + p) mod 251. */
export function pattern(seed, start, stop) {
  return Uint8Array.from({ length: stop - start }, (_, index) => (seed + start + index) % 251);
}

export function withHeader(type, stream, payload, place) {
  return join(buildHeader(type, stream, payload.length, crc32c(payload), place), payload);
}

/** The frame of an entry of `invalid`. */
export function invalidFrame({ frame, data, control }) {
  if (data) {
    const { pattern: seed, length } = data.payload;
    return withHeader("DATA", data.stream, pattern(seed, 0, length));
  }
  if (control) {
    const { spaces, brackets = 0 } = control;
    const text = (spaces === undefined ? "" : `{${" ".repeat(spaces)}}`) + "[".repeat(brackets);
    return withHeader(control.type, control.stream, new TextEncoder().encode(text));
  }
  return fromHex(frame);
}

/** The frame of a step as it arrives. */
export function encodeStep({ type, stream, fields = {}, frame, offset = 0, flags = 0, payload, damage }) {
  const bytes =
    frame !== undefined
      ? fromHex(frame)
      : type === "DATA"
        ? withHeader(type, stream, payloadOf({ offset, payload }), { offset, flags })
        : buildControl(type, stream, fields);
  if (damage) {
    bytes[damage.at] ^= damage.xor;
  }
  return bytes;
}

export function payloadOf({ offset = 0, payload }) {
  return pattern(payload.pattern, offset, offset + payload.length);
}

/** Have a client say what a step of its own says; returns the frame. */
export function sendStep(protocol, step) {
  const { type, stream, fields = {} } = step;
  switch (type) {
    case "DATA":
      return join(protocol.sendData(stream, payloadOf(step)), payloadOf(step));
    case "AUTH":
      return protocol.sendAuth(fields.ticket);
    case "PING":
      return protocol.sendPing(fields.nonce);
    case "CREATE":
      return protocol.sendCreate(fields)[1];
    case "ATTACH":
      return protocol.sendAttach(fields.upload)[1];
    case "QUERY":
      return protocol.sendQuery(fields.upload)[1];
    case "WATCH":
      return protocol.sendWatch(fields.scope, fields.uploads ?? [])[1];
    case "CANCEL":
      return fields.upload ? protocol.sendCancelOf(fields.upload)[1] : protocol.sendCancel(stream);
    case "RELEASE":
      return protocol.sendRelease(stream);
    case "PROOF":
      return protocol.sendProof(stream, fields.durable_crc32c, fields.received_crc32c);
    case "FINISH":
      return protocol.sendFinish(stream, fields);
  }
  throw new Error(`a client does not say ${type}`);
}
