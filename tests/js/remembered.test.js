// What a page leaves to the next one: unfinished uploads, and finished ones whose receipt was not sent.
import assert from "node:assert/strict";
import { test } from "node:test";
import { LARGE, LIMIT, after, assertStored, begin, fileOf, reload, sessionOf } from "./pages.js";
import { Clock, Server, Shelf, settle, until } from "./server.js";

const MIB = 1024 * 1024;
const PLACE = { page: "/documents/7/", row: 2 };

/** A page that uploaded a file and is gone; its form was not sent. */
async function finish(context, options = {}, size = MIB) {
  const server = new Server();
  server.response = { document: 7 };
  const records = new Shelf();
  const { uploader } = begin(context, server, { records });
  const upload = uploader.add(fileOf(size), options);
  const result = await upload.result;
  uploader.close();
  return { ...begin(context, server, { records }), records, key: upload.key, result };
}

test("a finished upload whose receipt was not sent is given back after a reload, without a byte sent", LIMIT, async (context) => {
  const { server, uploader, key, result } = await finish(context, { place: PLACE, field: "token" });
  server.heard.length = 0;
  const [found] = await uploader.remembered();
  assert.deepEqual(
    [found.key, found.name, found.size, found.sent, found.isFinished, found.canContinue, found.field, found.place],
    [key, "a.bin", MIB, MIB, true, true, "token", PLACE],
  );
  const upload = await found.continue();
  assert.equal(upload.state, "completed");
  assert.deepEqual(await upload.result, result);
  assert.deepEqual(result.response, { document: 7 });
  assert.deepEqual([upload.name, upload.size, upload.type, upload.key], ["a.bin", MIB, "application/x-test", key]);
  assert.equal(upload.progress.fraction, 1);
  assert.deepEqual(server.heard, []);
  await settle();
  assert.deepEqual(await uploader.remembered(), [], "this page is at it");
});

test("a finished upload is forgotten when its form was sent", LIMIT, async (context) => {
  const { uploader, records, key } = await finish(context);
  const [found] = await uploader.remembered();
  const upload = await found.continue();
  await uploader.forget(key);
  assert.equal(records.kept.size, 0);
  assert.deepEqual([upload.name, upload.size, upload.state], ["a.bin", MIB, "completed"]);
  assert.deepEqual(await uploader.remembered(), []);
});

test("the page that finished an upload forgets it, too, and can put it into another form", LIMIT, async (context) => {
  const records = new Shelf();
  const { uploader } = begin(context, new Server(), { records });
  const upload = uploader.add(fileOf(MIB));
  await upload.result;
  assert.ok(records.kept.get(upload.key).result);
  await uploader.forget(upload.key);
  assert.equal(records.kept.size, 0);
});

test("a finished upload without a receipt is not remembered", LIMIT, async (context) => {
  const server = new Server();
  const completed = server.completed;
  server.completed = (session) => ({ ...completed.call(server, session), receipt: undefined });
  const records = new Shelf();
  const { uploader } = begin(context, server, { records });
  await uploader.add(fileOf(MIB)).result;
  assert.equal(records.kept.size, 0);
});

test("files from 1 MiB on are remembered, smaller ones when they take longer than five seconds", LIMIT, async (context) => {
  const clock = new Clock();
  const records = new Shelf();
  const server = new Server();
  const { uploader } = begin(context, server, { ...clock, records });
  const held = [];
  server.intercept = (type, stream, fields, socket) => type !== "CREATE" && held.push([socket, type, stream, fields]) > 0;
  const upload = uploader.add(fileOf(500_000), { place: PLACE });
  await clock.pass(4000);
  for (const said of held.splice(0)) server.answer(...said);
  await clock.pass(100);
  assert.equal(records.kept.size, 0);
  await clock.pass(2000);
  for (const said of held.splice(0)) server.answer(...said);
  await upload.result;
  const { place, upload: id, result } = records.kept.get(upload.key);
  assert.deepEqual([place, id, result.receipt], [PLACE, sessionOf(server, upload).id, `receipt of ${id}`]);
});

test("what was begun with another owner is not shown", LIMIT, async (context) => {
  const { uploader, records } = await finish(context, { owner: "alice" });
  assert.deepEqual(await uploader.remembered(), []);
  assert.deepEqual(await uploader.remembered("bob"), []);
  assert.equal((await uploader.remembered("alice")).length, 1);
  await uploader.forgetOthers("alice");
  assert.equal(records.kept.size, 1);
  await uploader.forgetOthers("bob");
  assert.equal(records.kept.size, 0);
});

test("the same file of another owner is another upload", LIMIT, async (context) => {
  const { uploader, key } = await reload(context, fileOf(LARGE), { options: { owner: "alice" } });
  const upload = uploader.add(fileOf(LARGE), { owner: "bob" });
  await upload.result;
  assert.notEqual(upload.key, key);
});

test("an unfinished upload is given back with its place, and goes on there", LIMIT, async (context) => {
  const file = fileOf(LARGE);
  const handle = { name: file.name, getFile: async () => file };
  const { server, uploader, records, key } = await reload(context, file, { what: handle, options: { place: PLACE, owner: "a" } });
  const [found] = await uploader.remembered("a");
  assert.deepEqual([found.place, found.isFinished, found.canContinue], [PLACE, false, true]);
  const upload = await found.continue();
  await upload.result;
  await assertStored(server, upload, file);
  const { place, owner, result, handle: kept } = records.kept.get(key);
  assert.deepEqual([place, owner, result.receipt, kept], [PLACE, "a", `receipt of ${result.id}`, undefined]);
});

test("with `remember: false` of one upload nothing of it is kept", LIMIT, async (context) => {
  const records = new Shelf();
  const puts = context.mock.method(records, "put");
  const { uploader } = begin(context, new Server(), { records });
  await uploader.add(fileOf(2 * MIB), { remember: false }).result;
  assert.equal(puts.mock.callCount(), 0);
});

test("a database that never answers costs a second, not the upload", LIMIT, async (context) => {
  const never = () => new Promise(() => {});
  const clock = new Clock();
  const records = { put: never, delete: never, all: never, close() {} };
  const { server, uploader } = begin(context, new Server(), { ...clock, records });
  const file = fileOf(2 * MIB);
  const upload = uploader.add(file);
  await clock.pass(3000);
  await upload.result;
  await assertStored(server, upload, file);
  const list = uploader.remembered();
  await clock.pass(1000);
  assert.deepEqual(await list, []);
});

test("a database that fails costs what is remembered, not the upload", LIMIT, async (context) => {
  const dies = async () => { throw new DOMException("gone", "UnknownError"); };
  const records = { put: dies, delete: dies, all: dies, close() {} };
  const { server, uploader } = begin(context, new Server(), { records });
  const file = fileOf(2 * MIB);
  const upload = uploader.add(file);
  await upload.result;
  await assertStored(server, upload, file);
  await uploader.forget(upload.key);
});

for (const [how, request] of [
  ["never answer", () => new Promise(() => {})],
  ["are refused", async () => { throw new DOMException("no", "SecurityError"); }],
]) {
  test(`Web Locks that ${how} cost a second, not the upload`, LIMIT, async (context) => {
    Object.defineProperty(globalThis, "navigator", { configurable: true, value: { locks: { request, query: request } } });
    context.after(() => delete globalThis.navigator);
    const clock = new Clock();
    const { server, uploader } = begin(context, new Server(), { ...clock });
    const file = fileOf(2 * MIB);
    const upload = uploader.add(file);
    await clock.pass(3000);
    await upload.result;
    await assertStored(server, upload, file);
  });
}

test("an upload that is cancelled while it is being remembered leaves nothing", LIMIT, async (context) => {
  const records = new Shelf();
  let go;
  const put = records.put.bind(records);
  records.put = async (record) => {
    await new Promise((resolve) => (go = resolve));
    return put(record);
  };
  const { server, uploader } = begin(context, new Server(), { records });
  const upload = uploader.add(fileOf(2 * MIB));
  await until(() => go);
  upload.cancel();
  go();
  await settle();
  assert.deepEqual([records.kept.size, server.count("CREATE")], [0, 0]);
});
