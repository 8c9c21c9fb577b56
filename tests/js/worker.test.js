// What a Reader does when its Worker dies or falls silent. Node has no Workers of the web: this is one that does as it is told.
import assert from "node:assert/strict";
import { test } from "node:test";
import { Reader } from "../../src/django_async_upload/static/django_async_upload/file/reader.js";
import { PIECE, serve } from "../../src/django_async_upload/static/django_async_upload/file/reading.js";
import { crc32c } from "../../src/django_async_upload/static/django_async_upload/protocol/crc32c.js";
import { settle } from "./server.js";
import { pattern } from "./vectors.js";

const BYTES = pattern(1, 0, 9 * PIECE + 12345);
const LIMIT = { timeout: 60_000 };

/** `misbehave(worker, answer)` is asked before each answer of a Worker; true: it is never given. */
function page(context, misbehave) {
  context.mock.timers.enable({ apis: ["setTimeout"] });
  const workers = [];
  globalThis.Worker = class {
    number = workers.push(this);
    isTerminated = false;
    #receive = serve({ postMessage: (answer) => this.answer(answer) });

    constructor() {
      this.answer({ type: "loaded" });
    }

    answer(data) {
      setImmediate(() => this.isTerminated || misbehave(this, data) || this.onmessage?.({ data }));
    }

    postMessage(request) {
      setImmediate(() => this.isTerminated || this.#receive(request));
    }

    terminate() {
      this.isTerminated = true;
    }
  };
  const reader = new Reader();
  context.after(() => {
    reader.close();
    delete globalThis.Worker;
  });
  return { reader, workers };
}

/** Take all there is; each time nothing comes any more, `seconds` pass. */
async function readAll(context, reader, seconds) {
  const source = reader.open(new Blob([BYTES]), { wake: () => undefined });
  const bytes = new Uint8Array(BYTES.length);
  for (let silent = 0; source.position < source.size; ) {
    const chunk = source.take(PIECE / 2);
    if (chunk !== null) {
      bytes.set(chunk.payload, chunk.offset);
      silent = 0;
      continue;
    }
    await settle();
    silent += 1;
    if (silent > 20) {
      context.mock.timers.tick(seconds * 1000);
      silent = 0;
    }
  }
  assert.deepEqual(bytes, BYTES);
  assert.equal(await source.crcAt(BYTES.length), crc32c(BYTES));
}

test("a Worker that falls silent is replaced, and the file goes on", LIMIT, async (context) => {
  let pieces = 0;
  const { reader, workers } = page(context, (worker, { type }) => worker.number === 1 && type === "piece" && ++pieces > 3);
  await readAll(context, reader, 10);
  assert.deepEqual(workers.map(({ isTerminated }) => isTerminated), [true, false]);
});

test("a Worker that falls silent is not replaced at once", LIMIT, async (context) => {
  const { reader, workers } = page(context, (worker, { type }) => worker.number === 1 && type === "piece");
  const source = reader.open(new Blob([BYTES]), { wake: () => undefined });
  source.take(PIECE);
  await settle();
  context.mock.timers.tick(9_000);
  await settle();
  assert.equal(workers.length, 1);
  source.close();
  context.mock.timers.tick(60_000);
  await settle();
  assert.equal(workers.length, 1, "nothing is wanted of it any longer");
});

test("a computation in a Worker that falls silent is done by the next one", LIMIT, async (context) => {
  const { reader } = page(context, (worker, { type }) => worker.number === 1 && type === "done");
  const source = reader.open(new Blob([BYTES]), { wake: () => undefined });
  const crc = source.crcAt(BYTES.length - 5);
  await settle();
  context.mock.timers.tick(10_000);
  assert.equal(await crc, crc32c(BYTES.subarray(0, -5)));
});

test("a Worker that dies is replaced at once", LIMIT, async (context) => {
  let pieces = 0;
  const { reader, workers } = page(context, (worker, { type }) => {
    const dies = worker.number === 1 && type === "piece" && ++pieces > 2;
    if (dies) {
      worker.onerror({ preventDefault: () => undefined, message: "out of memory" });
    }
    return dies;
  });
  await readAll(context, reader, 0.01);
  assert.equal(workers.length, 2);
});

test("where every Worker falls silent the page reads by itself", LIMIT, async (context) => {
  const { reader, workers } = page(context, (worker, { type }) => type !== "loaded");
  await readAll(context, reader, 40);
  assert.equal(workers.length, 3);
});
