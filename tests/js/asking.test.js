// What a user asks of an upload holds, whatever is on its way just then; and what it waits for is said.
import assert from "node:assert/strict";
import { test } from "node:test";
import { LARGE, LIMIT, after, assertStored, begin, fileOf, record, sessionOf } from "./pages.js";
import { Clock, Server, Shelf, settle, until } from "./server.js";

/** Hold back what the client says of this type. */
function hold(server, wanted) {
  const held = [];
  server.intercept = (type, stream, fields, socket) => type === wanted && held.push([socket, type, stream, fields]) > 0;
  return () => {
    server.intercept = () => false;
    held.splice(0).forEach((said) => server.answer(...said));
  };
}

test("an upload that is paused, resumed and paused while the first RELEASE is on its way is paused", LIMIT, async (context) => {
  const { server, uploader } = begin(context);
  const upload = uploader.add(fileOf(LARGE));
  const states = record(upload, "state");
  await until(() => upload.progress.received > 500_000);
  const go = hold(server, "RELEASE");
  upload.pause();
  upload.resume();
  assert.equal(upload.state, "queued");
  upload.pause();
  assert.equal(upload.state, "paused");
  await until(() => server.count("RELEASE"));
  go();
  await settle();
  assert.equal(upload.state, "paused");
  assert.equal(server.socket.streams.size, 0);
  upload.resume();
  await upload.result;
  assert.deepEqual(states.map(({ state }) => state), [
    ...["uploading", "paused", "queued", "paused", "queued", "uploading", "finishing", "completed"],
  ]);
});

test("a pause while the connection is lost stays", LIMIT, async (context) => {
  const { server, uploader } = begin(context);
  const upload = uploader.add(fileOf(LARGE));
  await until(() => upload.progress.received > 500_000);
  hold(server, "RELEASE");
  upload.pause();
  await until(() => server.count("RELEASE"));
  server.socket.drop(1006);
  await settle();
  assert.equal(upload.state, "paused");
});

test("a pause behind FINISH holds where the upload comes back", LIMIT, async (context) => {
  const { server, uploader } = begin(context);
  const file = fileOf(1_000_000);
  hold(server, "FINISH");
  const upload = uploader.add(file);
  await until(() => server.count("FINISH"));
  server.socket.drop(1006);
  await until(() => server.count("FINISH") === 2 && upload.state === "uploading");
  upload.pause();
  assert.equal(upload.state, "paused");
  server.socket.drop(1006);
  await settle();
  assert.equal(upload.state, "paused");
  server.intercept = () => false;
  upload.resume();
  await upload.result;
  await assertStored(server, upload, file);
});

test("an upload is finishing when the server has its bytes, and can be paused until then", LIMIT, async (context) => {
  const { server, uploader } = begin(context);
  server.credit = 2 ** 30;
  const held = [];
  server.intercept = (type, stream, fields, socket) => type !== "CREATE" && held.push([socket, type, stream, fields]) > 0;
  const upload = uploader.add(fileOf(10_000));
  await until(() => server.count("FINISH"));
  assert.deepEqual([upload.state, upload.progress.received], ["uploading", 0]);
  upload.pause();
  assert.equal(upload.state, "paused");
  upload.resume();
  assert.equal(upload.state, "uploading");
  server.intercept = (type) => type === "FINISH";
  held.splice(0).filter(([, type]) => type === "DATA").forEach((said) => server.answer(...said));
  await until(() => upload.state === "finishing");
  assert.equal(upload.progress.received, 10_000);
  upload.pause();
  assert.equal(upload.state, "finishing");
});

test("an upload that is cancelled before the server has answered CREATE is cancelled on the next connection", LIMIT, async (context) => {
  const { server, uploader } = begin(context);
  server.intercept = after(1, "CREATE", (type, stream, fields, socket) => {
    server.answer(socket, type, stream, fields);
    socket.drop(1006);
    return true;
  });
  const upload = uploader.add(fileOf(LARGE));
  await until(() => upload.state === "offline");
  assert.equal(upload.id, undefined);
  upload.cancel();
  assert.equal(upload.state, "cancelled");
  await until(() => sessionOf(server, upload).state === "cancelled");
  assert.equal(server.sessions.size, 1);
});

test("a CANCEL whose connection is lost is sent again", LIMIT, async (context) => {
  const { server, uploader } = begin(context);
  const upload = uploader.add(fileOf(LARGE));
  await until(() => upload.progress.received > 0);
  server.intercept = after(1, "CANCEL", (type, stream, fields, socket) => (socket.drop(1006), true));
  upload.cancel();
  await until(() => sessionOf(server, upload).state === "cancelled");
  assert.equal(server.count("CANCEL"), 2);
});

test("a CANCEL that a busy server puts off is sent again", LIMIT, async (context) => {
  const clock = new Clock();
  const { server, uploader } = begin(context, new Server(), { ...clock });
  const upload = uploader.add(fileOf(LARGE));
  await until(() => upload.progress.received > 0);
  server.intercept = after(1, "CANCEL", (type, stream, fields, socket) => {
    server.end(socket, stream, { type: "ERROR", code: "database_unavailable", message: "", retryable: true, retry_after: 2 });
    return true;
  });
  upload.cancel();
  await clock.pass(1000);
  assert.equal(server.count("CANCEL"), 1);
  await clock.pass(1500);
  assert.equal(sessionOf(server, upload).state, "cancelled");
});

test("an upload that the server refused for good is not cancelled there when it is removed", LIMIT, async (context) => {
  const { server, uploader } = begin(context);
  server.intercept = (type, stream, fields, socket) =>
    type === "CREATE" && (server.refuse(socket, stream, "file_too_large"), true);
  const upload = uploader.add(fileOf(10));
  await assert.rejects(upload.result);
  upload.cancel();
  await settle();
  assert.deepEqual([server.count("CREATE"), server.count("CANCEL")], [1, 0]);
});

test("an upload that waits says for what, and until when", LIMIT, async (context) => {
  const clock = new Clock();
  const { server, uploader } = begin(context, new Server(), { ...clock });
  const refuse = (type, stream, fields, socket) =>
    type === "CREATE" && (server.refuse(socket, stream, "storage_full", { retryable: true, retry_after: 30 }), true);
  server.intercept = refuse;
  const upload = uploader.add(fileOf(10));
  const before = Date.now();
  await clock.pass(1000);
  assert.deepEqual([upload.state, upload.error.code], ["waiting", "storage_full"]);
  assert.ok(upload.retryAt >= before + 30_000 && upload.retryAt <= Date.now() + 30_000);
  server.intercept = () => false;
  upload.retry();
  await clock.pass(0);
  assert.deepEqual([upload.state, upload.error, upload.retryAt], ["completed", null, null]);
});

test("an upload that waits can be paused and cancelled", LIMIT, async (context) => {
  const clock = new Clock();
  const { server, uploader } = begin(context, new Server(), { ...clock });
  server.intercept = (type, stream, fields, socket) =>
    type === "CREATE" && (server.refuse(socket, stream, "storage_full", { retryable: true, retry_after: 1 }), true);
  const upload = uploader.add(fileOf(10));
  await clock.pass(500);
  upload.pause();
  await clock.pass(10_000);
  assert.deepEqual([upload.state, server.count("CREATE")], ["paused", 1]);
  upload.resume();
  await clock.pass(100);
  assert.equal(upload.state, "waiting");
  upload.cancel();
  await clock.pass(10_000);
  assert.deepEqual([upload.state, upload.retryAt], ["cancelled", null]);
});

test("a file that turns out to be unreadable while it is paused says so when it goes on", LIMIT, async (context) => {
  const clock = new Clock();
  const { uploader } = begin(context, new Server(), { ...clock });
  let refuse;
  const handle = { name: "a.bin", getFile: () => new Promise((_, reject) => (refuse = reject)) };
  const upload = uploader.add(handle);
  upload.pause();
  await clock.pass(100_000);
  refuse(new DOMException("gone", "NotFoundError"));
  await settle();
  assert.deepEqual([upload.state, uploader.uploads], ["paused", [upload]]);
  upload.resume();
  refuse(new DOMException("gone", "NotFoundError"));
  await settle();
  assert.deepEqual([upload.state, upload.error.code], ["waiting", "file_unreadable"]);
});

test("a pause behind FINISH that is taken back does not freeze the speed", LIMIT, async (context) => {
  const clock = new Clock();
  const { server, uploader } = begin(context, new Server(), { ...clock });
  server.credit = 2 ** 30;
  const held = [];
  server.intercept = (type, stream, fields, socket) => type !== "CREATE" && held.push([socket, type, stream, fields]) > 0;
  const upload = uploader.add(fileOf(200_000));
  await until(() => server.count("FINISH"));
  upload.pause();
  upload.resume();
  for (const said of held.filter(([, type]) => type === "DATA").slice(0, 2)) {
    await clock.pass(1000);
    server.answer(...said);
    await settle();
  }
  assert.equal(upload.state, "uploading");
  assert.ok(upload.progress.rate > 0);
});

test("a quota fails at once", LIMIT, async (context) => {
  const { server, uploader } = begin(context);
  server.intercept = (type, stream, fields, socket) =>
    type === "CREATE" && (server.refuse(socket, stream, "byte_quota", { retryable: true }), true);
  const upload = uploader.add(fileOf(10));
  await assert.rejects(upload.result, { code: "byte_quota" });
  assert.equal(server.count("CREATE"), 1);
});

// Files that change or vanish ------------------------------------------------------------------------

/** A file that cannot be read behind `offset` until the result is called; its head and tail can. */
function broken(file, offset, error) {
  let isBroken = true;
  const slice = file.slice.bind(file);
  file.slice = (from = 0, to = file.size) => {
    const part = slice(from, to);
    if (isBroken && from < offset + 2 ** 20 && to > offset) {
      part.stream = () => { throw error; };
      part.arrayBuffer = async () => { throw error; };
    }
    return part;
  };
  return () => (isBroken = false);
}

test("a file that cannot be read for a moment goes on where it was; nothing is cancelled", LIMIT, async (context) => {
  const clock = new Clock();
  const records = new Shelf();
  const { server, uploader } = begin(context, new Server(), { ...clock, records });
  const file = fileOf(6_000_000);
  const bytes = new Uint8Array(await file.arrayBuffer());
  const mend = broken(file, 3_000_000, new DOMException("changed", "NotReadableError"));
  const upload = uploader.add(file);
  const states = record(upload, "state");
  await until(() => states.some(({ state }) => state === "waiting"));
  assert.equal(upload.error.code, "file_unreadable");
  assert.ok(records.kept.has(upload.key));
  mend();
  while (upload.state !== "completed") {
    await clock.pass(1000);
  }
  assert.deepEqual(sessionOf(server, upload).bytes, bytes);
  assert.deepEqual([server.count("CANCEL"), server.sessions.size], [0, 1]);
});

test("a file that cannot be read has failed after half a minute, and stays for the same file", LIMIT, async (context) => {
  const clock = new Clock();
  const { server, uploader } = begin(context, new Server(), { ...clock, random: () => 0.9 });
  const file = fileOf(6_000_000);
  broken(file, 3_000_000, new DOMException("changed", "NotReadableError"));
  const upload = uploader.add(file);
  await until(() => upload.state === "waiting");
  while (upload.state !== "failed") {
    await clock.pass(1000);
  }
  assert.equal(upload.error.code, "file_unreadable");
  assert.equal(sessionOf(server, upload).state, "uploading");
  const again = uploader.add(fileOf(6_000_000));
  await again.result;
  assert.deepEqual([again.key, server.sessions.size, server.count("CANCEL")], [upload.key, 1, 0]);
});

test("a file behind a handle is opened again when it cannot be read", LIMIT, async (context) => {
  const { server, uploader } = begin(context);
  const stale = fileOf(6_000_000);
  broken(stale, 3_000_000, new DOMException("changed", "NotReadableError"));
  const files = [stale, fileOf(6_000_000)];
  const upload = uploader.add({ name: "a.bin", getFile: async () => (files.length > 1 ? files.shift() : files[0]) });
  await upload.result;
  await assertStored(server, upload, files[0]);
  assert.equal(server.sessions.size, 1);
});

// Memory ---------------------------------------------------------------------------------------------

test("the uploader keeps no upload that is over", LIMIT, async (context) => {
  const { server, uploader } = begin(context);
  await Promise.all(Array.from({ length: 50 }, () => uploader.add(fileOf(10)).result));
  assert.deepEqual(uploader.uploads, []);
  const paused = uploader.add(fileOf(10));
  paused.pause();
  assert.deepEqual(uploader.uploads, [paused]);
  paused.cancel();
  assert.deepEqual(uploader.uploads, []);
  server.intercept = after(1, "CREATE", (type, stream, fields, socket) => (server.refuse(socket, stream, "not_found"), true));
  const failed = uploader.add(fileOf(10));
  await assert.rejects(failed.result);
  assert.deepEqual(uploader.uploads, []);
  failed.retry();
  assert.deepEqual(uploader.uploads, [failed]);
  await failed.result;
});

test("an upload that is left stays on the server, remembered, for another page", LIMIT, async (context) => {
  const records = new Shelf();
  const { server, uploader } = begin(context, new Server(), { records });
  const upload = uploader.add(fileOf(LARGE));
  await until(() => upload.progress.received > 500_000);
  upload.leave();
  assert.equal(upload.state, "failed");
  const [found] = await uploader.remembered();
  assert.equal(found.key, upload.key);
  await until(() => server.count("RELEASE"));
  assert.equal(server.count("CANCEL"), 0);
});

// A line on which nothing moves ------------------------------------------------------------------------

test("while nothing arrives the speed goes down and progress is said once a second", LIMIT, async (context) => {
  const clock = new Clock();
  const { server, uploader } = begin(context, new Server(), { ...clock });
  const held = [];
  server.intercept = (type, stream, fields, socket) => type === "DATA" && held.push([socket, type, stream, fields]) > 0;
  const upload = uploader.add(fileOf(LARGE));
  for (let step = 0; step < 10; step++) {
    await until(() => held.length > 0);
    await clock.pass(300);
    server.answer(...held.shift());
    await settle();
  }
  const { rate } = upload.progress;
  assert.ok(rate > 0);
  const seen = record(upload, "progress");
  await clock.pass(20_000);
  assert.ok(seen.length >= 19, `${seen.length} times`);
  assert.ok(upload.progress.rate < rate / 20, `${upload.progress.rate}`);
  assert.ok(!(upload.progress.remaining < 1000), `${upload.progress.remaining} s`);
});
