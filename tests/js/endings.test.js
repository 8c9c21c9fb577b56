// Whether the client comes back after a connection has ended, and when: tests/vectors/endings.json.
import assert from "node:assert/strict";
import { test } from "node:test";
import { Uploader } from "../../src/django_async_upload/static/django_async_upload/client.js";
import { Clock, Server, environmentOf } from "./server.js";
import { ENDINGS } from "./vectors.js";

const LIMIT = { timeout: 60_000 };
const HOUR = 3_600_000;

function begin(context, server, { random, ...options } = {}) {
  const clock = new Clock();
  const environment = environmentOf(server, { ...clock, random });
  const uploader = new Uploader({ url: "/ws/uploads/", ...options }, environment);
  context.after(() => uploader.close());
  return { clock, uploader };
}

/** End a connection as a vector says. */
function end(server, socket, { drain, error, close }) {
  if (drain !== undefined) {
    server.say(socket, 0, { type: "DRAIN", retry_after: drain });
  }
  if (error !== undefined) {
    server.say(socket, 0, { type: "ERROR", facts: {}, ...error });
  }
  setImmediate(() => setImmediate(() => socket.drop(close)));
}

for (const vector of ENDINGS.endings) {
  test(`an upload is tried again where that can help: ${vector.about}`, LIMIT, async (context) => {
    const server = new Server();
    let asked = 0;
    const options = {};
    if (vector.ticket) {
      server.hello.authenticated = false;
      options.authenticate = async () => (vector.ticket === "same" ? "the only one" : `ticket ${++asked}`);
    }
    const { clock, uploader } = begin(context, server, options);
    server.intercept = (type, stream, fields, socket) => {
      const isFirst = server.sockets.indexOf(socket) === 0;
      if (isFirst && type === "CREATE") {
        end(server, socket, vector);
      }
      return isFirst && type !== "AUTH";
    };
    const upload = uploader.add(new File(["x"], "a.txt"));
    upload.result.catch(() => {});
    await clock.pass(20_000);
    assert.equal(server.sockets.length, vector.back ? 2 : 1);
    assert.equal(upload.state, vector.back ? "completed" : "failed");
  });
}

for (const [bound, share] of [["least", 0], ["most", 1]]) {
  for (const { about, ends } of ENDINGS.waits) {
    test(`it waits as long as is right, at ${bound}: ${about}`, LIMIT, async (context) => {
      const server = new Server();
      const { clock, uploader } = begin(context, server, { random: () => share });
      const left = [...ends];
      const ended = new Map(); // socket -> when
      const opened = new Map();
      server.intercept = (type, stream, fields, socket) => {
        const [ending] = left;
        opened.set(socket, opened.get(socket) ?? clock.now());
        if (ended.has(socket)) {
          return true;
        }
        if (ending === undefined || type !== (ending.gained ? "DATA" : "CREATE")) {
          return false;
        }
        if (ending.gained) {
          server.answer(socket, type, stream, fields);
        }
        left.shift();
        ended.set(socket, clock.now());
        end(server, socket, ending);
        return true;
      };
      const upload = uploader.add(new File([new Uint8Array(100_000)], "a.bin"));
      await clock.pass(HOUR / 10);
      assert.equal(upload.state, "completed");
      assert.equal(server.sockets.length, ends.length + 1);
      ends.forEach(({ wait: [least, most] }, index) => {
        const [before, after] = server.sockets.slice(index);
        const waited = (opened.get(after) - ended.get(before)) / 1000;
        assert.ok(least <= waited && waited <= most, `${waited} s, the wait ${index}`);
      });
    });
  }
}

test("no stream is opened while a server is busy", LIMIT, async (context) => {
  const server = new Server();
  const { clock, uploader } = begin(context, server, { random: () => 0 });
  const opened = [];
  server.intercept = (type, stream, fields, socket) => {
    if (type === "CREATE" && opened.push(clock.now()) === 1) {
      server.refuse(socket, stream, "busy", { retryable: true, retry_after: 3 });
      return true;
    }
    return false;
  };
  const uploads = [uploader.add(new File(["x"], "first.txt"))];
  await clock.pass(1000);
  for (let number = 0; number < 5; number++) {
    uploads.push(uploader.add(new File(["x"], `${number}.txt`)));
  }
  await clock.pass(5000);
  assert.deepEqual(uploads.map(({ state }) => state), Array(6).fill("completed"));
  assert.deepEqual(opened, [0, 3000, 3000, 3000, 3000, 3000, 3000]);
});

test("a connection that serves no stream is closed, though the server answers PING", LIMIT, async (context) => {
  const server = new Server();
  Object.assign(server.hello, { heartbeat: 20, connection_limit: 50_000 });
  const { clock, uploader } = begin(context, server, { random: () => 0 });
  const upload = uploader.add(new File([new Uint8Array(80_000)], "a.bin"));
  await clock.pass(55_000);
  assert.deepEqual([upload.state, server.sockets.length], ["uploading", 1]);
  assert.ok(server.count("PING") > 1);
  await clock.pass(20_000);
  assert.deepEqual([upload.state, server.sockets.length], ["completed", 2]);
});

test("a ticket that was not refused is good for the next connection", LIMIT, async (context) => {
  const server = new Server();
  server.hello.authenticated = false;
  const { clock, uploader } = begin(context, server, { authenticate: async () => "the only one" });
  server.intercept = (type, stream, fields, socket) => {
    const isFirst = server.sockets.indexOf(socket) === 0;
    if (isFirst && type === "CREATE") {
      socket.drop(1006);
    }
    return isFirst && type !== "AUTH";
  };
  const upload = uploader.add(new File(["x"], "a.txt"));
  await clock.pass(20_000);
  assert.deepEqual([upload.state, server.sockets.length, server.count("AUTH")], ["completed", 2, 2]);
});

test("uploads whose ticket ran out share one fresh one", LIMIT, async (context) => {
  const server = new Server();
  let given = 0;
  const { clock, uploader } = begin(context, server, {
    random: () => 0,
    authenticate: async () => (given < 2 ? `ticket ${++given}` : "ticket 2"),
  });
  server.hello.authenticated = false;
  const held = [];
  server.intercept = (type, stream, fields, socket) => {
    if (type === "FINISH" && held.length < 3) {
      held.push(() => server.refuse(socket, stream, "ticket_expired", { retryable: true }));
      if (held.length === 3) {
        held.forEach((refuse) => refuse());
      }
      return true;
    }
    return false;
  };
  const uploads = ["a", "b", "c"].map((name) => uploader.add(new File([name], name)));
  await clock.pass(20_000);
  assert.deepEqual(uploads.map(({ state }) => state), Array(3).fill("completed"));
  assert.deepEqual([server.sockets.length, server.count("AUTH")], [1, 2]);
});
