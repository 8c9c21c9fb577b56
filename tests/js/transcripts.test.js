// The transcripts of tests/vectors, run against the client's half of the protocol; and the runner against wrong ones.
import assert from "node:assert/strict";
import { test } from "node:test";
import { ClientProtocol } from "../../src/django_async_upload/static/django_async_upload/protocol/client.js";
import {
  parseFields,
  parseHeader,
} from "../../src/django_async_upload/static/django_async_upload/protocol/frames.js";
import { buildMessage } from "../../src/django_async_upload/static/django_async_upload/protocol/messages.js";
import { parseMessage } from "./messages.js";
import { TRANSCRIPTS, encodeStep, sendStep } from "./vectors.js";

const FOR_CLIENTS = TRANSCRIPTS.filter(({ sides }) => sides === undefined || sides.includes("client"));

/** The server's frames where they reach the client, in their own order. */
function* inClientOrder(steps) {
  const waiting = [];
  for (const step of steps) {
    if (step.from === "server") {
      waiting.push({ late: step.late ?? 0, step });
    } else {
      yield step;
      waiting.forEach((each) => each.late--);
    }
    while (waiting.length && waiting[0].late <= 0) {
      yield waiting.shift().step;
    }
  }
  yield* waiting.map(({ step }) => step);
}

/** What a control step says. */
function messageOf({ type, stream, fields = {} }) {
  return parseMessage(type, parseFields(buildMessage(stream, { type, ...fields })));
}

function run({ steps }) {
  const protocol = new ClientProtocol();
  const replies = [];
  for (const step of inClientOrder(steps)) {
    const { type, stream, offset = 0, flags = 0, outcome = "taken", code } = step;
    const where = `step ${steps.indexOf(step)}: ${type} on stream ${stream}`;
    if (step.from === "client") {
      const frame = type === "PAUSED" || type === "PONG" ? replies.shift() : sendStep(protocol, step);
      assert.ok(frame, `${where}: no reply`);
      const { crc, ...place } = parseHeader(frame);
      assert.deepEqual(place, { type, stream, offset, flags }, where);
      if (type === "DATA") {
        assert.deepEqual(frame, encodeStep({ ...step, damage: undefined }), where);
      } else {
        assert.deepEqual(parseMessage(type, parseFields(frame)), messageOf(step), where);
      }
      continue;
    }
    let event;
    try {
      event = protocol.receive(encodeStep(step));
    } catch (error) {
      assert.deepEqual(["closed", error.code], [outcome, code], `${where}: ${error.stack}`);
      assert.ok(error.isViolation, where);
      continue;
    }
    if (event === null) {
      assert.equal(outcome, "dropped", where);
    } else {
      assert.equal(outcome, "taken", where);
      assert.deepEqual(event, { stream, message: messageOf(step) }, where);
    }
    replies.push(...protocol.replies());
  }
  assert.deepEqual(replies, [], "a reply that the transcript does not have");
  return protocol;
}

for (const transcript of FOR_CLIENTS) {
  test(`the client keeps to the transcript: ${transcript.name}`, () => {
    const protocol = run(transcript);
    const open = [...protocol.streams.values()];
    const inFlight = open.reduce((sum, stream) => sum + stream.sent - stream.received, 0);
    assert.equal(protocol.inFlight, inFlight);
  });
}

test("the transcripts for clients are many, and show every message that a server says", () => {
  assert.ok(FOR_CLIENTS.length > 50);
  const said = new Set(FOR_CLIENTS.flatMap(({ steps }) => steps.map((step) => step.type)));
  assert.equal(said.size, 30);
});

test("a client that sends something else is noticed", () => {
  const transcript = TRANSCRIPTS.find(({ name }) => name === "damage_and_rewind");
  transcript.steps.forEach((step, number) => {
    if (step.type === "DATA") {
      const steps = transcript.steps.with(number, { ...step, offset: (step.offset ?? 0) + 1 });
      assert.throws(() => run({ steps }), new RegExp(`step ${number}:`));
    }
  });
});

test("a client that misses a refusal is noticed", () => {
  let tried = 0;
  for (const { steps } of FOR_CLIENTS) {
    steps.forEach((step, number) => {
      if (step.from === "server" && (step.outcome ?? "taken") !== "taken") {
        const other = { ...step, outcome: "taken", code: undefined };
        assert.throws(() => run({ steps: steps.with(number, other) }));
        tried++;
      }
    });
  }
  assert.ok(tried > 10);
});
