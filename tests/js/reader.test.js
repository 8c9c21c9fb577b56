// Sources of files, read by the code that runs in the Worker. Node has no Workers of the web, so these tests read on the main
// thread, the way a page does that may not have one.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { after, test } from "node:test";
import {
  crc32c,
} from "../../src/django_async_upload/static/django_async_upload/protocol/crc32c.js";
import { Reader } from "../../src/django_async_upload/static/django_async_upload/file/reader.js";
import {
  AHEAD,
  GRAIN,
  PIECE,
} from "../../src/django_async_upload/static/django_async_upload/file/reading.js";
import { fingerprint } from "../../src/django_async_upload/static/django_async_upload/file/fingerprint.js";
import { pattern as seeded } from "./vectors.js";

const pattern = (size) => seeded(1, 0, size);

const BYTES = pattern(3 * PIECE + 5 * GRAIN + 123);
const reader = new Reader();
after(() => reader.close());

/** A source of `blob`, a function that waits until it gives a chunk, and one that takes all there is. */
function opened(blob, options = {}) {
  let waiting = () => {};
  const source = reader.open(blob, { wake: () => waiting(), ...options });
  const next = async (maximum) => {
    for (;;) {
      const chunk = source.take(maximum);
      if (chunk !== null) {
        return { ...chunk, payload: chunk.payload.slice() };
      }
      if (source.position === source.size) {
        return null;
      }
      await new Promise((resolve) => (waiting = resolve));
    }
  };
  const rest = async () => {
    while ((await next(PIECE)) !== null);
  };
  return { source, next, rest };
}

function check(chunk, bytes) {
  assert.equal(chunk.frame.length, 16 + chunk.size);
  assert.equal(chunk.crc, crc32c(chunk.payload));
  assert.deepEqual(chunk.payload, bytes.slice(chunk.offset, chunk.offset + chunk.size));
}

test("chunks of any sizes follow each other and carry their CRC", async () => {
  const { source, next } = opened(new Blob([BYTES]));
  const sizes = [GRAIN, 5 * GRAIN + 1, PIECE / 2, 2 * GRAIN - 1, PIECE / 2 + GRAIN];
  let position = 0;
  while (position < BYTES.length) {
    const chunk = await next(sizes.shift() ?? 10 * PIECE);
    check(chunk, BYTES);
    assert.equal(chunk.offset, position);
    position += chunk.size;
    assert.equal(source.position, position);
    assert.equal(await source.crcAt(position), crc32c(BYTES.subarray(0, position)));
  }
  assert.deepEqual(sizes, []);
  assert.equal(await next(PIECE), null);
  source.close();
});

test("less than a grain is not taken, until it is the end of the file", async () => {
  const { source, next } = opened(new Blob([BYTES]));
  await next(GRAIN);
  assert.equal(source.take(GRAIN - 1), null);
  while (source.size - source.position > 123) {
    await next(source.size - source.position - 1);
  }
  assert.equal(source.size - source.position, 123);
  check(await next(GRAIN - 1), BYTES);
  assert.equal(source.position, source.size);
  source.close();
});

test("what is sent again is the same", async () => {
  const { source, next } = opened(new Blob([BYTES]));
  const first = await next(2 * GRAIN);
  const second = await next(PIECE);
  await next(PIECE);
  source.seek(second.offset);
  const again = await next(PIECE);
  check(again, BYTES);
  assert.deepEqual([again.offset, again.crc], [second.offset, second.crc]);
  source.seek(first.offset);
  check(await next(BYTES.length), BYTES);
  source.close();
});

test("a source does not go to an offset whose CRC is not known", async () => {
  const { source, next } = opened(new Blob([BYTES]));
  await next(GRAIN);
  assert.throws(() => source.seek(2 * GRAIN), RangeError);
  assert.equal(source.position, GRAIN);
  source.close();
});

test("an upload goes on at any offset that was proved", async () => {
  const { source, next } = opened(new Blob([BYTES]));
  const [durable, received] = [PIECE + 77, 2 * PIECE + 1];
  const told = [];
  const crc = await source.crcAt(durable, { onprogress: (...figures) => told.push(figures) });
  assert.equal(crc, crc32c(BYTES.subarray(0, durable)));
  assert.deepEqual(told.at(-1)?.[1], durable);
  assert.equal(await source.crcAt(received), crc32c(BYTES.subarray(0, received)));
  source.seek(durable);
  const chunk = await next(3 * GRAIN + 5);
  assert.deepEqual([chunk.offset, chunk.size], [durable, 3 * GRAIN]);
  check(chunk, BYTES);
  while (source.position < source.size) {
    check(await next(PIECE), BYTES);
  }
  assert.equal(await source.crcAt(BYTES.length), crc32c(BYTES));
  source.close();
});

test("a boundary is known until it is forgotten, and from the nearest one on only the rest is read", async () => {
  const { source, next } = opened(new Blob([BYTES]));
  const ends = [];
  for (let count = 0; count < 4; count++) {
    const chunk = await next(GRAIN);
    ends.push(chunk.offset + chunk.size);
  }
  source.forget(ends[2]);
  assert.throws(() => source.seek(ends[1]), RangeError);
  source.seek(ends[2]);
  assert.equal(await source.crcAt(ends[1]), crc32c(BYTES.subarray(0, ends[1])));
  source.close();
});

test("only so much is read ahead", async () => {
  let largest = 0;
  const whole = new Blob([new Uint8Array(3 * AHEAD)]);
  const watched = new Proxy(whole, {
    get(blob, name) {
      if (name === "slice") {
        return (start, end) => {
          const slice = blob.slice(start, end);
          const real = slice.stream.bind(slice);
          slice.stream = () => {
            const stream = real();
            const open = stream.getReader.bind(stream);
            stream.getReader = (options) => {
              const input = open(options);
              const read = input.read.bind(input);
              input.read = async (view) => {
                const got = await read(view);
                largest += got.value?.length ?? 0;
                return got;
              };
              return input;
            };
            return stream;
          };
          return slice;
        };
      }
      const value = blob[name];
      return typeof value === "function" ? value.bind(blob) : value;
    },
  });
  const { source, next } = opened(watched);
  assert.equal((await next(GRAIN)).size, GRAIN);
  await new Promise((resolve) => setTimeout(resolve, 200));
  assert.equal(largest, AHEAD);
  source.close();
});

test("a small file comes with its CRC, too", async () => {
  const bytes = pattern(40_000);
  const { source, next } = opened(new Blob([bytes]));
  const first = await next(10_001);
  assert.equal(first.size, 10_001);
  check(first, bytes);
  check(await next(100_000), bytes);
  assert.equal(await source.crcAt(bytes.length), crc32c(bytes));
  assert.equal(await source.crcAt(12_345), crc32c(bytes.subarray(0, 12_345)));
  source.seek(12_345);
  check(await next(1), bytes);
  source.close();
});

test("an empty file has nothing to take", async () => {
  const { source } = opened(new Blob([]));
  assert.equal(source.take(GRAIN), null);
  assert.equal(await source.crcAt(0), 0);
  source.close();
});

for (const bytes of [BYTES, pattern(1000)]) {
  test(`the SHA-256 of ${bytes.length} bytes is that of all of them, however they were read`, async () => {
    const { source, next } = opened(new Blob([bytes]), { digest: "sha-256" });
    await source.crcAt(500);
    await next(100_000);
    source.seek(500);
    while (source.position < source.size) {
      await next(PIECE);
    }
    assert.equal(await source.digest(), createHash("sha256").update(bytes).digest("hex"));
    source.close();
  });
}

test("several files are read side by side", async () => {
  const files = [0, 1, 2].map((number) => BYTES.map((byte) => byte ^ number));
  const sources = files.map((bytes) => opened(new Blob([bytes])));
  await Promise.all(
    sources.map(async ({ source, next }, number) => {
      while (source.position < source.size) {
        check(await next(3 * GRAIN), files[number]);
      }
      assert.equal(await source.crcAt(source.size), crc32c(files[number]));
      source.close();
    }),
  );
});

/** A large file of which the bytes from `PIECE` on cannot be read. */
function broken(name) {
  const bytes = BYTES.subarray(0, PIECE);
  const fail = () => {
    throw new DOMException("gone", name);
  };
  const file = new Blob([BYTES]);
  file.slice = () => ({
    arrayBuffer: async () => fail(),
    stream: () =>
      new ReadableStream({
        type: "bytes",
        start(controller) {
          controller.enqueue(bytes.slice());
        },
        pull: fail,
      }),
  });
  return file;
}

for (const [name, code] of [
  ["NotReadableError", "file_unreadable"],
  ["NotFoundError", "file_unreadable"],
]) {
  test(`a file that fails with ${name} is ${code}`, async () => {
    const { source, next, rest } = opened(broken(name));
    await next(GRAIN);
    await assert.rejects(rest(), { name: "UploadError", code });
    assert.equal(source.error.code, code);
    await assert.rejects(source.crcAt(BYTES.length), { code });
    source.close();
  });
}

test("a file that ends too early cannot be read", async () => {
  const file = new Blob([BYTES]);
  file.slice = () => new Blob([BYTES.subarray(0, PIECE)]);
  const { source, rest } = opened(file);
  await assert.rejects(rest(), { code: "file_unreadable" });
  source.close();
});

test("a computation is aborted with the signal's reason, and by closing", async () => {
  const { source } = opened(new Blob([BYTES]));
  const abort = new AbortController();
  const one = source.crcAt(BYTES.length, { signal: abort.signal });
  abort.abort(new Error("enough"));
  await assert.rejects(one, { message: "enough" });
  const other = source.crcAt(BYTES.length);
  source.close();
  await assert.rejects(other, { name: "AbortError" });
  assert.throws(() => source.take(GRAIN), { code: "upload_interrupted" });
});

test("a fingerprint knows a file by its content", async () => {
  const name = (bytes) => fingerprint(new Blob([bytes]));
  const changed = BYTES.slice();
  changed[changed.length - 1] ^= 1;
  assert.equal(await name(BYTES), await name(BYTES.slice()));
  assert.notEqual(await name(BYTES), await name(changed));
  assert.notEqual(await name(BYTES), await name(BYTES.subarray(1)));
});

test("a file that was changed behind an open stream is noticed before its end is given", async () => {
  const file = new Blob([BYTES]);
  const real = file.slice.bind(file);
  file.slice = (start, end) =>
    end === 1
      ? { arrayBuffer: () => Promise.reject(new DOMException("changed", "NotReadableError")) }
      : real(start, end);
  const { source, next, rest } = opened(file);
  await next(GRAIN);
  await assert.rejects(rest(), { code: "file_unreadable" });
  assert.ok(source.position < source.size);
  source.close();
});
