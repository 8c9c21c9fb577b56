// When a page gives up on WebSockets, and that it does not do so for good.
import assert from "node:assert/strict";
import { test } from "node:test";
import { LIMIT, begin, fileOf, record } from "./pages.js";
import { Clock, Server } from "./server.js";

function unreachable(context, more = {}) {
  context.mock.method(console, "warn", () => {});
  const server = new Server();
  const clock = new Clock();
  server.isReachable = false;
  const page = begin(context, server, { ...clock, random: () => 0.5, ...more });
  return { ...page, clock, changes: record(page.uploader, "unreachable"), warnings: record(page.uploader, "warning") };
}

test("after half a minute of failures while HTTP works, no WebSocket is said to get through", LIMIT, async (context) => {
  const asked = [];
  const isServed = async (url) => asked.push(url) > 0;
  const { uploader, clock, changes, warnings } = unreachable(context, { isServed });
  uploader.add(fileOf(10));
  await clock.pass(29_000);
  assert.deepEqual([uploader.unreachable, changes, asked], [false, [], []]);
  await clock.pass(2_000);
  assert.deepEqual([uploader.unreachable, changes], [true, [{ unreachable: true }]]);
  assert.deepEqual(asked, ["https://example.org/ws/uploads/"]);
  assert.deepEqual(warnings.map(({ code }) => code), ["unreachable"]);
});

test("it goes on trying, with nothing to upload, and undoes it", LIMIT, async (context) => {
  const { server, uploader, clock, changes } = unreachable(context);
  const upload = uploader.add(fileOf(10));
  await clock.pass(40_000);
  upload.cancel();
  await clock.pass(600_000);
  assert.equal(uploader.unreachable, true);
  server.isReachable = true;
  await clock.pass(31_000);
  assert.deepEqual([uploader.unreachable, changes.at(-1)], [false, { unreachable: false }]);
  await clock.pass(31_000);
  assert.equal(uploader.connection, "idle");
});

for (const [about, more] of [
  ["while the browser is offline", { isOnline: () => false }],
  ["while HTTP does not get through either", { isServed: async () => false }],
  ["while it is not known whether HTTP gets through", { isServed: () => new Promise(() => {}) }],
]) {
  test(`it is never said ${about}`, LIMIT, async (context) => {
    const { server, uploader, clock, changes } = unreachable(context, more);
    const upload = uploader.add(fileOf(10));
    await clock.pass(900_000);
    assert.deepEqual([uploader.unreachable, changes, upload.state], [false, [], "offline"]);
    server.isReachable = true;
    await clock.pass(31_000);
    assert.equal(upload.state, "completed");
  });
}

test("the time without a network does not count", LIMIT, async (context) => {
  const { uploader, clock, environment } = unreachable(context);
  uploader.add(fileOf(10));
  await clock.pass(29_000);
  environment.network.dispatchEvent(new Event("online"));
  await clock.pass(25_000);
  assert.equal(uploader.unreachable, false);
  await clock.pass(10_000);
  assert.equal(uploader.unreachable, true);
});

test("a server that was reached once is waited for, however long it is away", LIMIT, async (context) => {
  const { server, uploader, clock, changes } = unreachable(context);
  server.isReachable = true;
  uploader.add(fileOf(10));
  await clock.pass(100);
  server.isReachable = false;
  server.socket.drop(1006);
  const upload = uploader.add(fileOf(10));
  await clock.pass(900_000);
  assert.deepEqual([uploader.unreachable, changes, upload.state], [false, [], "offline"]);
});

test("what is not a WebSocket address is unreachable at once", LIMIT, async (context) => {
  class Refused { constructor() { throw new DOMException("insecure", "SecurityError"); } }
  const { uploader, clock } = unreachable(context, { WebSocket: Refused });
  const upload = uploader.add(fileOf(10));
  await clock.pass(0);
  await assert.rejects(upload.result, { code: "connection_refused" });
  assert.equal(uploader.unreachable, true);
});
