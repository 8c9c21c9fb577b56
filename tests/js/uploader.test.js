// The shell: an Uploader against a server in the same process.
import assert from "node:assert/strict";
import { test } from "node:test";
import { UploadError } from "../../src/django_async_upload/static/django_async_upload/client.js";
import { LARGE, LIMIT, after, assertStored, begin, fileOf, record, reload, sessionOf } from "./pages.js";
import { Clock, Server, Shelf, WINDOW, settle, until } from "./server.js";

/** That this process has used: what else the machine does is no matter. */
function cpuSeconds() {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
}


for (const size of [0, 1, 16384, 16385, 65536, 65537, 1_000_003, LARGE]) {
  test(`a file of ${size} bytes arrives`, LIMIT, async (context) => {
    const { server, uploader } = begin(context);
    const file = fileOf(size);
    const upload = uploader.add(file, { metadata: { album: 7 } });
    const states = record(upload, "state");
    const result = await upload.result;
    await assertStored(server, upload, file);
    const session = sessionOf(server, upload);
    assert.deepEqual(result, {
      ...{ id: session.id, name: "a.bin", size, crc32c: session.crc, storedAs: "a.bin" },
      ...{ digests: {}, receipt: `receipt of ${session.id}`, response: undefined },
    });
    assert.deepEqual(states.map(({ state }) => state), ["uploading", "finishing", "completed"]);
    assert.equal(upload.progress.fraction, 1);
    assert.deepEqual(session.metadata, { album: 7 });
    assert.equal(server.socket.url, "wss://example.org/ws/uploads/");
  });
}

test("the app's own answer is in the result, and in the detail of the event", LIMIT, async (context) => {
  const server = new Server();
  server.response = { document: 7, url: "/documents/7/" };
  const { uploader } = begin(context, server);
  const upload = uploader.add(fileOf(1000));
  const completed = record(upload, "completed");
  const { response } = await upload.result;
  assert.deepEqual(response, { document: 7, url: "/documents/7/" });
  assert.deepEqual(completed, [{ result: await upload.result }]);
});

test("a small file is created, sent and finished before any answer", LIMIT, async (context) => {
  const { server, uploader } = begin(context);
  server.intercept = (type) => type === "CREATE" || type === "DATA"; // silence until FINISH
  const upload = uploader.add(fileOf(1000));
  await until(() => server.count("FINISH"));
  await settle();
  assert.deepEqual(server.heard.map(([type]) => type), ["CREATE", "DATA", "FINISH"]);
  upload.cancel();
});

test("10,000 small files share one socket, and none waits for another's answer", LIMIT, async (context) => {
  const { server, uploader } = begin(context);
  let open = 0;
  let most = 0;
  server.intercept = (type) => {
    open += type === "CREATE" ? 1 : type === "FINISH" ? -1 : 0;
    most = Math.max(most, open);
    return false;
  };
  const file = fileOf(100);
  const started = cpuSeconds();
  const uploads = Array.from({ length: 10_000 }, (_, index) => uploader.add(file, { name: `${index}` }));
  await Promise.all(uploads.map((upload) => upload.result));
  const seconds = cpuSeconds() - started;
  assert.equal(server.sockets.length, 1);
  assert.equal(server.sessions.size, 10_000);
  assert.ok(most <= server.hello.max_streams);
  assert.ok(seconds < 20, `${seconds} s`);
  context.diagnostic(`${Math.round(10_000 / seconds)} files a second of CPU`);
});

test("adding is never quadratic: a file costs no more when 100,000 wait before it", LIMIT, async (context) => {
  // The median of ten batches of 1,000: the collector of garbage runs when it likes.
  const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1];
  const file = fileOf(100);
  const batch = (uploader) => {
    const started = cpuSeconds();
    for (let index = 0; index < 1000; index++) {
      uploader.add(file);
    }
    return cpuSeconds() - started;
  };
  const batches = (count) => {
    const server = new Server();
    server.isReachable = false;
    const { uploader } = begin(context, server);
    return Array.from({ length: count }, () => batch(uploader));
  };
  batches(20); // compiled by now
  const seconds = batches(100);
  const ratio = median(seconds.slice(-10)) / median(seconds.slice(0, 10));
  assert.ok(ratio < 8, `${ratio}`); // quadratic: 19
  context.diagnostic(`the last cost ${ratio.toFixed(1)} times the first`);
});

test("large files are sent `parallel` at a time, and small ones beside them", LIMIT, async (context) => {
  const { server, uploader } = begin(context, new Server(), { options: { parallel: 2 } });
  const held = [];
  server.intercept = (type, stream, fields, socket) => {
    if (type === "DATA" && fields.offset >= 65536) {
      held.push([socket, type, stream, fields]);
      return true;
    }
    return false;
  };
  const files = [1, 2, 3].map((seed) => fileOf(LARGE, `${seed}`, seed));
  const uploads = files.map((file) => uploader.add(file));
  await uploader.add(fileOf(100, "small")).result;
  await settle();
  assert.deepEqual(uploads.map(({ state }) => state), ["uploading", "uploading", "queued"]);
  server.intercept = () => false;
  held.forEach((said) => server.answer(...said));
  await Promise.all(uploads.map((upload) => upload.result));
  await assertStored(server, uploads[2], files[2]);
});

test("a lost connection costs nothing that has arrived", LIMIT, async (context) => {
  const { server, uploader } = begin(context);
  const file = fileOf(LARGE);
  server.intercept = after(60, "DATA", (type, stream, fields, socket) => (socket.drop(1006), true));
  const upload = uploader.add(file);
  const states = record(upload, "state");
  await upload.result;
  await assertStored(server, upload, file);
  assert.equal(server.sockets.length, 2);
  assert.deepEqual(states.map(({ state }) => state), ["uploading", "offline", "uploading", "finishing", "completed"]);
  const sent = server.heard.filter(([type]) => type === "DATA").reduce((sum, [, , { size }]) => sum + size, 0);
  assert.ok(sent - LARGE <= server.credit, `${sent - LARGE} bytes were sent twice`);
});

test("a lost answer to CREATE makes no second upload", LIMIT, async (context) => {
  const { server, uploader } = begin(context);
  server.intercept = after(1, "FINISH", (type, stream, fields, socket) => {
    server.answer(socket, type, stream, fields);
    socket.drop(1006);
    return true;
  });
  const upload = uploader.add(fileOf(1000));
  await upload.result;
  assert.equal(server.sessions.size, 1);
  assert.equal(server.count("DATA"), 1);
});

test("without a network it waits, and goes on at once when the network is back", LIMIT, async (context) => {
  const server = new Server();
  const clock = new Clock();
  const { uploader, environment } = begin(context, server, { ...clock, random: () => 0.99 });
  server.isReachable = false;
  const upload = uploader.add(fileOf(1000));
  const connections = record(uploader, "connection");
  await clock.pass(120_000);
  assert.equal(upload.state, "offline");
  assert.equal(upload.error.code, "connection_lost");
  assert.equal(uploader.connection, "waiting");
  assert.ok(connections.at(-1).retryIn > 10);
  const before = server.sockets.length;
  assert.ok(before < 20, `${before} attempts in two minutes`);
  server.isReachable = true;
  environment.network.dispatchEvent(new Event("online"));
  await settle();
  assert.equal(server.sockets.length, before + 1);
  assert.equal(upload.state, "completed");
});

test("a page that becomes visible connects at once", LIMIT, async (context) => {
  const server = new Server();
  const clock = new Clock();
  const { uploader, environment } = begin(context, server, { ...clock, random: () => 0.99 });
  server.isReachable = false;
  const upload = uploader.add(fileOf(1000));
  await clock.pass(60_000);
  server.isReachable = true;
  environment.page.visibilityState = "hidden";
  environment.page.dispatchEvent(new Event("visibilitychange"));
  await settle();
  assert.equal(upload.state, "offline");
  environment.page.visibilityState = "visible";
  environment.page.dispatchEvent(new Event("visibilitychange"));
  await settle();
  assert.equal(upload.state, "completed");
});

test("a server that was never reached is reported to the developer, once", LIMIT, async (context) => {
  context.mock.method(console, "warn", () => {});
  const server = new Server();
  const clock = new Clock();
  const { uploader } = begin(context, server, { ...clock, random: () => 0.99 });
  const warnings = record(uploader, "warning");
  server.isReachable = false;
  uploader.add(fileOf(10));
  await clock.pass(300_000);
  assert.deepEqual(warnings.map(({ code }) => code), ["unreachable"]);
  assert.match(warnings[0].message, /wss:\/\/example\.org\/ws\/uploads\//);
  assert.equal(console.warn.mock.callCount(), 1);
});

test("permessage-deflate is reported to the developer", LIMIT, async (context) => {
  context.mock.method(console, "warn", () => {});
  const server = new Server();
  server.extensions = "permessage-deflate; server_max_window_bits=12";
  const { uploader } = begin(context, server);
  const warnings = record(uploader, "warning");
  await uploader.add(fileOf(10)).result;
  assert.deepEqual(warnings.map(({ code }) => code), ["deflate"]);
});

test("a rewound upload is sent again from there", LIMIT, async (context) => {
  const { server, uploader } = begin(context);
  const file = fileOf(1_000_000);
  server.intercept = after(5, "DATA", (type, stream, fields, socket) => {
    const session = socket.streams.get(stream);
    session.rewound = true;
    session.durable = session.received - 16384 > 0 ? session.durable : 0;
    server.say(socket, stream, {
      ...{ type: "REWIND", offset: session.received, durable: session.durable },
      ...{ limit: session.durable + WINDOW, code: "corrupt_chunk" },
    });
    return true;
  });
  const upload = uploader.add(file);
  await upload.result;
  await assertStored(server, upload, file);
  assert.equal(server.heard.filter(([type, , { flags }]) => type === "DATA" && flags === 1).length, 1);
});

test("a paused upload sends nothing and holds no stream; resumed, it goes on where it was", LIMIT, async (context) => {
  const { server, uploader } = begin(context);
  const file = fileOf(LARGE);
  const upload = uploader.add(file);
  await until(() => upload.progress.received > 500_000);
  upload.pause();
  assert.equal(upload.state, "paused");
  await until(() => server.count("RELEASE") === 1);
  await settle();
  const sent = server.count("DATA");
  await settle();
  assert.equal(server.count("DATA"), sent);
  assert.equal(server.socket.streams.size, 0);
  upload.resume();
  await upload.result;
  await assertStored(server, upload, file);
  assert.equal(server.sockets.length, 1);
});

test("an upload is paused and resumed in one task, paused before its turn, and paused at its end", LIMIT, async (context) => {
  const { server, uploader } = begin(context);
  const [first, second, third] = [1, 2, 3].map((seed) => fileOf(LARGE, `${seed}`, seed));
  const hasty = uploader.add(first);
  await until(() => hasty.progress.received > 0);
  hasty.pause();
  hasty.resume();
  const early = uploader.add(second);
  early.pause();
  const late = uploader.add(third);
  late.addEventListener("state", ({ detail: { state } }) => state === "finishing" && late.pause());
  await Promise.all([hasty.result, late.result]);
  assert.equal(early.state, "paused");
  assert.equal(sessionOf(server, early), undefined);
  early.resume();
  await early.result;
  await assertStored(server, hasty, first);
});

test("a cancelled upload is deleted on the server, and its state says so at once", LIMIT, async (context) => {
  const { server, uploader } = begin(context);
  const upload = uploader.add(fileOf(LARGE));
  await until(() => upload.progress.received > 0);
  upload.cancel();
  assert.equal(upload.state, "cancelled");
  await assert.rejects(upload.result, { code: "upload_over" });
  await until(() => sessionOf(server, upload).state === "cancelled");
  await uploader.add(fileOf(10)).result; // the connection is fine
  assert.equal(server.sockets.length, 1);
});

test("an upload that is cancelled without a connection is cancelled on the next one", LIMIT, async (context) => {
  const server = new Server();
  const { uploader, environment } = begin(context, server, { random: () => 0.999 });
  const upload = uploader.add(fileOf(LARGE));
  await until(() => upload.progress.received > 0);
  server.isReachable = false;
  server.socket.drop(1006);
  assert.equal(upload.state, "offline");
  upload.cancel();
  server.isReachable = true;
  environment.network.dispatchEvent(new Event("online"));
  await until(() => sessionOf(server, upload).state === "cancelled");
});

test("a refused upload fails with what the server says, and can be tried again as a new one", LIMIT, async (context) => {
  const { server, uploader } = begin(context);
  server.intercept = after(1, "CREATE", (type, stream, fields, socket) => {
    server.refuse(socket, stream, "file_too_large", { message: "Too large.", facts: { max_size: 5 } });
    return true;
  });
  const upload = uploader.add(fileOf(10));
  const errors = record(upload, "error");
  await assert.rejects(upload.result, (error) => {
    assert.ok(error instanceof UploadError);
    assert.deepEqual([error.code, error.message, error.retryable], ["file_too_large", "Too large.", false]);
    return error.facts.max_size === 5;
  });
  assert.equal(upload.state, "failed");
  assert.equal(errors[0].error, upload.error);
  const { key } = upload;
  upload.retry();
  await upload.result;
  assert.notEqual(upload.key, key);
});

test("a host's own error is handed through", LIMIT, async (context) => {
  const { server, uploader } = begin(context);
  server.intercept = (type, stream, fields, socket) =>
    type === "CREATE" && (server.refuse(socket, stream, "virus_found", { message: "Bad." }), true);
  await assert.rejects(uploader.add(fileOf(10)).result, { code: "virus_found", message: "Bad." });
});

test("what a retry can mend is tried again after what the server asks for", LIMIT, async (context) => {
  const clock = new Clock();
  const { server, uploader } = begin(context, new Server(), { ...clock });
  server.intercept = after(1, "CREATE", (type, stream, fields, socket) => {
    server.refuse(socket, stream, "busy", { retryable: true, retry_after: 3 });
    return true;
  });
  const upload = uploader.add(fileOf(10));
  await clock.pass(2900);
  assert.deepEqual([upload.state, upload.error.code, server.count("CREATE")], ["waiting", "busy", 1]);
  await clock.pass(200);
  assert.equal(upload.state, "completed");
});

test("an upload that no retry mends in five minutes has failed", LIMIT, async (context) => {
  const clock = new Clock();
  const { server, uploader } = begin(context, new Server(), { ...clock, random: () => 0.99 });
  server.intercept = (type, stream, fields, socket) =>
    type === "CREATE" && (server.refuse(socket, stream, "storage_full", { retryable: true }), true);
  const upload = uploader.add(fileOf(10));
  await clock.pass(290_000);
  assert.equal(upload.state, "waiting");
  await clock.pass(60_000);
  assert.equal(upload.state, "failed");
  await assert.rejects(upload.result, { code: "storage_full", retryable: true });
  server.intercept = () => false;
  const { key } = upload;
  upload.retry();
  await clock.pass(1000);
  assert.deepEqual([upload.state, upload.key], ["completed", key]);
});

test("an upload that was taken over is not taken back", LIMIT, async (context) => {
  const { server, uploader } = begin(context);
  server.intercept = after(3, "DATA", (type, stream, fields, socket) => {
    server.refuse(socket, stream, "taken_over");
    return true;
  });
  const upload = uploader.add(fileOf(LARGE));
  await assert.rejects(upload.result, { code: "taken_over", retryable: false });
  await settle();
  assert.equal(server.count("CREATE"), 1);
});

test("a ticket is fetched when the server wants one, and again before it expires", LIMIT, async (context) => {
  const clock = new Clock();
  const asked = [];
  const authenticate = async (error) => `ticket ${asked.push(error?.code)}`;
  const server = new Server();
  server.hello.authenticated = false;
  server.expiresIn = 60;
  const { uploader } = begin(context, server, { ...clock, options: { authenticate } });
  const upload = uploader.add(fileOf(10));
  await clock.pass(0);
  assert.equal(upload.state, "completed");
  const [[type, , fields]] = server.heard;
  assert.deepEqual([type, fields.ticket], ["AUTH", "ticket 1"]);
  server.intercept = (type) => type === "CREATE";
  uploader.add(fileOf(20)); // keeps the connection busy
  await clock.pass(50_000);
  assert.deepEqual(asked, ["authentication_required", undefined]);
  assert.equal(server.count("AUTH"), 2);
});

test("a login that runs out in the middle of a file is renewed, and the file goes on", LIMIT, async (context) => {
  let renew;
  const renewed = new Promise((resolve) => (renew = resolve));
  const { server, uploader } = begin(context, new Server(), { options: { authenticate: () => renewed } });
  server.intercept = after(1, "FINISH", (type, stream, fields, socket) => {
    server.refuse(socket, stream, "ticket_expired", { retryable: true });
    return true;
  });
  const file = fileOf(1_000_000);
  const upload = uploader.add(file);
  await until(() => upload.state === "unauthenticated");
  assert.equal(upload.error.code, "ticket_expired");
  const sent = server.count("DATA");
  renew("fresh");
  await upload.result;
  await assertStored(server, upload, file);
  assert.equal(server.sockets.length, 1);
  assert.equal(server.count("DATA"), sent);
});

test("a login by cookie is looked at again by a new handshake", LIMIT, async (context) => {
  const clock = new Clock();
  const server = new Server();
  server.hello.authenticated = false;
  const { uploader } = begin(context, server, { ...clock, random: () => 0.5 });
  const upload = uploader.add(fileOf(1000));
  await clock.pass(5000);
  assert.equal(upload.state, "unauthenticated");
  assert.ok(server.sockets.length > 2);
  server.hello.authenticated = true;
  await clock.pass(30_000);
  assert.equal(upload.state, "completed");
});

test("a restart that is announced is waited for", LIMIT, async (context) => {
  const clock = new Clock();
  const { server, uploader } = begin(context, new Server(), { ...clock });
  const file = fileOf(LARGE);
  server.intercept = after(10, "DATA", (type, stream, fields, socket) => {
    server.say(socket, 0, { type: "DRAIN", retry_after: 2 });
    setImmediate(() => setImmediate(() => socket.drop(4503)));
    return false;
  });
  const upload = uploader.add(file);
  await clock.pass(1900);
  assert.deepEqual([upload.state, server.sockets.length], ["offline", 1]);
  await clock.pass(200);
  await clock.pass(0);
  await upload.result;
  await assertStored(server, upload, file);
});

test("a page that may not upload gets the error, and does not connect again", LIMIT, async (context) => {
  const { server, uploader } = begin(context);
  server.hello.heartbeat = 0;
  const first = uploader.add(fileOf(LARGE));
  const second = uploader.add(fileOf(10));
  server.intercept = (type, stream, fields, socket) => {
    server.say(socket, 0, { type: "ERROR", code: "permission_denied", message: "No.", retryable: false });
    return true;
  };
  await assert.rejects(first.result, { code: "permission_denied" });
  await assert.rejects(second.result, { code: "permission_denied" });
  await settle();
  assert.deepEqual([uploader.connection, server.sockets.length], ["closed", 1]);
});

test("a connection whose server breaks the protocol is closed", LIMIT, async (context) => {
  const { server, uploader } = begin(context);
  server.intercept = (type, stream, fields, socket) =>
    type === "CREATE" && (server.say(socket, stream, { type: "READY", offset: 0, durable: 0, limit: 1, chunk: 1 }), true);
  await assert.rejects(uploader.add(fileOf(10)).result, { code: "unexpected_message" });
  assert.equal(server.socket.closeCode, 4400);
});

test("a connection on which the server does not answer is given up", LIMIT, async (context) => {
  const clock = new Clock();
  const server = new Server();
  server.hello.heartbeat = 20;
  const { uploader } = begin(context, server, { ...clock });
  server.intercept = (type, stream, fields, socket) => socket === server.sockets[0];
  const upload = uploader.add(fileOf(10));
  await clock.pass(25_000);
  assert.equal(server.count("PING"), 1);
  await clock.pass(60_000);
  assert.equal(server.sockets.length, 2);
  assert.equal(upload.state, "completed");
});

test("what the socket holds is capped by time", LIMIT, async (context) => {
  const clock = new Clock();
  const server = new Server();
  const { uploader } = begin(context, server, { ...clock });
  // A line of 100 kB/s, and a server that gives all the credit it has: each chunk takes its time before the server hears of it.
  server.credit = WINDOW;
  const waiting = [];
  let most = 0;
  server.intercept = (type, stream, fields, socket) => {
    if (type === "DATA") {
      waiting.push([socket, type, stream, fields]);
      return true;
    }
    return false;
  };
  const upload = uploader.add(fileOf(LARGE));
  for (let second = 0; second < 60; second++) {
    await clock.pass(655);
    const said = waiting.shift();
    if (said) {
      server.answer(...said);
    }
    if (second > 30) {
      most = Math.max(most, upload.progress.sent - upload.progress.received);
    }
  }
  assert.ok(most <= 2.5 * 110_000 + 65536 * 2, `${most} bytes under way`);
  assert.ok(most >= 65536);
});

// Surviving a reload --------------------------------------------------------------------------------

test("after a reload the same file goes on, whatever its name is", LIMIT, async (context) => {
  const file = fileOf(LARGE, "old name");
  const { server, uploader, records, key } = await reload(context, file);
  const [unfinished] = await uploader.remembered();
  assert.deepEqual(
    [unfinished.key, unfinished.name, unfinished.size, unfinished.canContinue],
    [key, "old name", LARGE, false],
  );
  await assert.rejects(unfinished.continue(), { code: "file_unreadable" });
  const upload = uploader.add(fileOf(LARGE, "new name"));
  await upload.result;
  assert.equal(upload.key, key);
  assert.equal(server.sessions.size, 1);
  await assertStored(server, upload, file);
  assert.ok(server.heard.find(([type]) => type === "DATA")[2].offset > LARGE / 4);
  await uploader.forget(key);
  assert.equal(records.kept.size, 0);
  assert.deepEqual(await uploader.remembered(), []);
});

test("a file that only looks the same is uploaded on its own", LIMIT, async (context) => {
  const file = fileOf(LARGE);
  const { server, uploader, records, key } = await reload(context, file);
  const bytes = new Uint8Array(await file.arrayBuffer());
  bytes[1_000_000] ^= 1;
  const other = new File([bytes], "a.bin", { type: file.type });
  const upload = uploader.add(other);
  await upload.result;
  assert.notEqual(upload.key, key);
  await assertStored(server, upload, other);
  assert.ok(records.kept.has(key), "the unfinished one is still there");
});

for (const how of ["chosen again", "behind a handle"]) {
  test(`a file ${how} begins anew where the server has expired its upload`, LIMIT, async (context) => {
    const file = fileOf(LARGE);
    const what = how === "chosen again" ? file : { name: file.name, getFile: async () => file };
    const { server, uploader, records, key } = await reload(context, file, { what });
    server.intercept = (type, stream, fields, socket) =>
      type === "CREATE" &&
      fields.key === key &&
      (server.refuse(socket, stream, "upload_over", { facts: { state: "expired" } }), true);
    const [unfinished] = await uploader.remembered();
    const upload = how === "chosen again" ? uploader.add(what) : await unfinished.continue();
    await upload.result;
    assert.notEqual(upload.key, key);
    await assertStored(server, upload, file);
    assert.deepEqual([...records.kept.keys()], [upload.key]);
  });
}

test("the same file for other purposes is another upload", LIMIT, async (context) => {
  const { server, uploader, key } = await reload(context, fileOf(LARGE), { options: { field: "one" } });
  const upload = uploader.add(fileOf(LARGE), { field: "two" });
  await upload.result;
  assert.notEqual(upload.key, key);
  assert.deepEqual(sessionOf(server, upload).metadata, { field: "two" });
});

test("with a handle it goes on by itself", LIMIT, async (context) => {
  const file = fileOf(LARGE);
  const handle = { name: file.name, getFile: async () => file };
  const { server, uploader, key } = await reload(context, file, { what: handle });
  const [unfinished] = await uploader.remembered();
  assert.equal(unfinished.canContinue, true);
  const upload = await unfinished.continue();
  await upload.result;
  assert.equal(upload.key, key);
  await assertStored(server, upload, file);
});

test("a file behind a handle that has changed is noticed", LIMIT, async (context) => {
  const file = fileOf(LARGE);
  let current = file;
  const handle = { name: file.name, getFile: async () => current };
  const { uploader, server, records } = await reload(context, file, { what: handle });
  current = fileOf(LARGE, "a.bin", 2);
  const [unfinished] = await uploader.remembered();
  const upload = await unfinished.continue();
  await assert.rejects(upload.result, { code: "file_changed" });
  assert.equal(server.sessions.size, 1);
  assert.equal(records.kept.size, 1);
});

test("an unfinished upload that is discarded is deleted on the server", LIMIT, async (context) => {
  const { server, uploader, records, key } = await reload(context, fileOf(LARGE));
  const [unfinished] = await uploader.remembered();
  await unfinished.discard();
  assert.equal(records.kept.size, 0);
  await until(() => server.sessions.get(key).state === "cancelled");
});

test("a finished upload that is discarded is deleted on the server, and no other is", LIMIT, async (context) => {
  const { server, uploader } = begin(context);
  const [one, two] = [uploader.add(fileOf(10)), uploader.add(fileOf(20))];
  await Promise.all([one.result, two.result]);
  one.discard();
  two.cancel(); // what is finished is not cancelled
  await until(() => server.sessions.get(one.key).state === "deleted");
  assert.equal(one.state, "completed");
  await uploader.add(fileOf(30)).result;
  assert.equal(server.sessions.get(two.key).state, "completed");
});

test("a remembered finished upload that is discarded is deleted on the server", LIMIT, async (context) => {
  const records = new Shelf();
  const server = new Server();
  const first = begin(context, server, { records });
  const upload = first.uploader.add(fileOf(LARGE));
  await upload.result;
  first.uploader.close();
  const { uploader } = begin(context, server, { records });
  const [finished] = await uploader.remembered();
  assert.equal(finished.isFinished, true);
  await finished.discard();
  await until(() => server.sessions.get(upload.key).state === "deleted");
});

test("without `remember` nothing is remembered, and small files never are", LIMIT, async (context) => {
  const records = new Shelf();
  const puts = context.mock.method(records, "put");
  const { uploader } = begin(context, new Server(), { records, options: { remember: false } });
  await uploader.add(fileOf(LARGE)).result;
  const other = begin(context, new Server(), { records });
  await other.uploader.add(fileOf(1000)).result;
  assert.equal(puts.mock.callCount(), 0);
});

test("a file that cannot be read fails, and the others go on", LIMIT, async (context) => {
  const { uploader } = begin(context);
  const gone = { name: "gone", getFile: async () => { throw new DOMException("gone", "NotFoundError"); } };
  const upload = uploader.add(gone);
  await assert.rejects(upload.result, { code: "file_unreadable" });
  await uploader.add(fileOf(10)).result;
});

test("an upload whose metadata is not JSON fails alone", LIMIT, async (context) => {
  const { uploader } = begin(context);
  await assert.rejects(uploader.add(fileOf(10), { metadata: { a: NaN } }).result, { code: "metadata_invalid" });
  await uploader.add(fileOf(10)).result;
});

test("a digest is sent where it was asked for", LIMIT, async (context) => {
  const { uploader } = begin(context);
  const { digests } = await uploader.add(new File(["abc"], "abc"), { digest: "sha-256" }).result;
  assert.equal(digests["sha-256"], "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
});

test("a connection without anything to do is closed", LIMIT, async (context) => {
  const clock = new Clock();
  const { server, uploader } = begin(context, new Server(), { ...clock });
  assert.equal(uploader.connection, "idle");
  uploader.add(fileOf(10));
  await clock.pass(1000);
  assert.equal(uploader.connection, "open");
  await clock.pass(31_000);
  assert.deepEqual([uploader.connection, server.socket.closeCode], ["idle", 1000]);
});

test("a listener may cancel an upload in the very event that it begins", LIMIT, async (context) => {
  const { server, uploader } = begin(context);
  const upload = uploader.add(fileOf(LARGE));
  upload.addEventListener("state", ({ detail }) => detail.state === "uploading" && upload.cancel());
  await assert.rejects(upload.result, { code: "upload_over" });
  const next = uploader.add(fileOf(1000));
  await next.result;
  await until(() => server.count("CANCEL"));
});
