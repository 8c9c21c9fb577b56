// Following uploads that the page does not send: what is asked for, what is told, and when the connection is opened and closed.
import assert from "node:assert/strict";
import { test } from "node:test";
import { Watcher } from "../../src/django_async_upload/static/django_async_upload/client/watcher.js";
import { Server, environmentOf, settle, until } from "./server.js";

const A = "00000000-0000-4000-8000-00000000000a";
const B = "00000000-0000-4000-8000-00000000000b";
const standing = (upload, state, more = {}) => ({ upload, state, name: "a.bin", durable: 0, size: 10, ...more });

/** A server that answers WATCH with `answers`, in turn, and RELEASE. */
function begin(context, { answers = [[]], scope, hello = {} } = {}) {
  const server = new Server();
  server.hello = { ...server.hello, ...hello };
  const asked = [];
  const released = [];
  server.intercept = (type, stream, fields, socket) => {
    if (type === "WATCH") {
      asked.push(fields.uploads);
      const standings = answers.length > 1 ? answers.shift() : answers[0];
      if (Array.isArray(standings)) server.say(socket, stream, { type: "CHANGED", standings });
      else server.say(socket, stream, standings);
      server.watched = { socket, stream };
      return true;
    }
    if (type === "RELEASE") {
      released.push(stream);
      server.say(socket, stream, { type: "RELEASED", durable: 0 });
      return true;
    }
    return false;
  };
  const environment = environmentOf(server);
  const watcher = new Watcher({ url: "/ws/uploads/", scope }, environment);
  context.after(() => watcher.close());
  const told = [];
  watcher.addEventListener("changed", ({ detail }) => told.push(...detail.standings.map(({ upload, state }) => [upload, state])));
  return { server, watcher, environment, asked, released, told };
}

const see = (environment, visibilityState) => {
  environment.page.visibilityState = visibilityState;
  environment.page.dispatchEvent(new Event("visibilitychange"));
};

test("what is followed in one moment is one question, and what comes later replaces it", async (context) => {
  const { server, watcher, asked, released, told } = begin(context, { answers: [[standing(A, "uploading")]] });
  await settle();
  assert.equal(server.sockets.length, 0, "nothing to follow, no connection");
  watcher.follow(A);
  watcher.follow(A);
  await until(() => told.length === 1);
  assert.deepEqual(asked, [[A]]);
  assert.ok(watcher.isLive);
  watcher.follow(B);
  watcher.leave(A);
  await until(() => released.length === 1);
  assert.deepEqual(asked, [[A], [A, B]], "A was followed twice");
  watcher.leave(A);
  watcher.leave(B);
  await until(() => server.sockets[0].isClosed);
  assert.ok(!watcher.isLive);
  assert.equal(server.sockets.length, 1);
});

test("after a lost connection it asks again, with those under way", async (context) => {
  const answers = [[standing(A, "uploading"), standing(B, "completed")], [standing(A, "failed")]];
  const { server, asked, told } = begin(context, { answers, scope: "own" });
  await until(() => told.length === 2);
  server.sockets[0].drop(1006);
  await until(() => told.length === 3);
  assert.deepEqual(asked, [[], [A]]);
  assert.deepEqual(told.at(-1), [A, "failed"]);
});

test("a hidden page is not connected", async (context) => {
  const { server, watcher, environment, told } = begin(context, { answers: [[standing(A, "uploading")]] });
  watcher.follow(A);
  await until(() => told.length === 1);
  see(environment, "hidden");
  await until(() => server.sockets[0].isClosed);
  assert.ok(!watcher.isLive);
  see(environment, "visible");
  await until(() => told.length === 2);
  assert.equal(server.sockets.length, 2);
});

test("a page that may not watch asks no more until it is seen again", async (context) => {
  const error = { type: "ERROR", code: "permission_denied", message: "no", retryable: false };
  const { server, watcher, environment, asked } = begin(context, { answers: [error, []], scope: "all" });
  await until(() => asked.length === 1);
  await until(() => server.sockets[0].isClosed);
  await settle();
  assert.equal(server.sockets.length, 1);
  see(environment, "hidden");
  see(environment, "visible");
  await until(() => watcher.isLive);
});

test("a page without a login asks nothing", async (context) => {
  const { server, watcher, asked } = begin(context, { hello: { authenticated: false } });
  watcher.follow(A);
  await until(() => server.sockets[0]?.isClosed);
  await settle();
  assert.deepEqual([asked, server.sockets.length, watcher.isLive], [[], 1, false]);
});

test("a busy server is asked again on the same connection", async (context) => {
  const error = { type: "ERROR", code: "busy", message: "later", retryable: true, retry_after: 0.01, facts: {} };
  const { server, watcher, told } = begin(context, { answers: [error, [standing(A, "uploading")]] });
  watcher.follow(A);
  await until(() => told.length === 1);
  assert.equal(server.sockets.length, 1);
});
