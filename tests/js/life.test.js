// The table of an upload's life: every phase with every event.
import assert from "node:assert/strict";
import { test } from "node:test";
import {
  LIFE,
  PATIENCE,
  PATIENCE_OF_FILES,
  canGoOn,
  eventOf,
  isKept,
  isOver,
  next,
  shown,
  wantsTurn,
} from "../../src/django_async_upload/static/django_async_upload/client/life.js";
import { UploadError } from "../../src/django_async_upload/static/django_async_upload/client.js";

const EVENTS = ["pause", "hold", "resume", "cancel", "retry", "leave", "start", "released", "arrived", "rewound", "complete"];
EVENTS.push("offline", "online", "login", "again", "due", "anew", "fail");

/** Phase -> where each event leads, in the order of EVENTS; `.` is nowhere. */
const EXPECTED = {
  queued: "paused . . cancelled . failed uploading . . . . offline . unauthenticated waiting . . failed",
  offline: "paused . . cancelled . failed uploading . . . . . queued unauthenticated waiting . . failed",
  unauthenticated: "paused . . cancelled . failed uploading . . . . offline queued . waiting . . failed",
  waiting: "paused . . cancelled queued failed . . . . . . . . . queued . failed",
  uploading:
    "pausing holding . cancelled . failed . queued finishing . completed offline . unauthenticated waiting . queued failed",
  holding: "pausing . uploading cancelled . failed . paused finishing . completed paused . paused paused . paused failed",
  pausing: ". . resuming cancelled . failed . paused . . completed paused . paused paused . paused failed",
  resuming: "pausing . . cancelled . failed . queued . . completed offline . unauthenticated waiting . queued failed",
  paused: ". . queued cancelled . failed . . . . . . . . . . . .",
  finishing: ". . . cancelled . failed . . . uploading completed offline . unauthenticated waiting . queued failed",
  completed: ". . . . . . . . . . . . . . . . . .",
  failed: ". . . cancelled queued . . . . . . . . . . . . .",
  cancelled: ". . . . queued . . . . . . . . . . . . .",
};

for (const [phase, line] of Object.entries(EXPECTED)) {
  test(`from ${phase} every event leads where it should`, () => {
    const ways = line.split(" ");
    assert.equal(ways.length, EVENTS.length);
    EVENTS.forEach((event, index) => {
      assert.equal(next(phase, event), ways[index] === "." ? phase : ways[index], `${phase}, ${event}`);
    });
  });
}

test("the table knows these phases and events and no others", () => {
  assert.deepEqual(Object.keys(LIFE), Object.keys(EXPECTED));
  for (const ways of Object.values(LIFE)) {
    for (const [event, to] of Object.entries(ways)) {
      assert.ok(EVENTS.includes(event), event);
      assert.ok(to in LIFE, to);
    }
  }
});

test("what a user paused does not go on by itself, whatever happens", () => {
  const asked = new Set(["resume", "cancel", "leave"]);
  for (const phase of ["paused", "pausing", "holding"]) {
    for (const event of EVENTS) {
      const to = next(phase, event);
      const isGoingOn = !["paused"].includes(shown(to)) && !isOver(to) && to !== "finishing";
      assert.ok(asked.has(event) || !isGoingOn, `${phase}, ${event}: ${to}`);
    }
  }
});

test("from every phase that is not over a user can cancel, and reach the end", () => {
  for (const phase of Object.keys(LIFE)) {
    if (!isOver(phase)) {
      assert.equal(next(phase, "cancel"), "cancelled", phase);
      assert.equal(next(phase, "leave"), "failed", phase);
    }
  }
  assert.deepEqual(Object.keys(LIFE).filter(wantsTurn), ["queued", "offline", "unauthenticated"]);
});

const of = (code, more = {}) => eventOf(new UploadError(code), { isGuess: false, isFromBefore: false, stuck: 0, ...more });

test("an error waits, asks for a login or fails", () => {
  assert.equal(of("connection_lost"), "offline");
  assert.equal(of("draining"), "offline");
  assert.equal(of("ticket_expired"), "login");
  assert.equal(of("storage_full"), "again");
  assert.equal(of("storage_full", { stuck: PATIENCE - 1 }), "again");
  assert.equal(of("storage_full", { stuck: PATIENCE }), "fail");
  assert.equal(of("taken_over"), "fail");
  assert.equal(of("file_too_large"), "fail");
});

test("a quota fails at once: waiting does not help", () => {
  assert.equal(of("session_quota"), "fail");
  assert.equal(of("byte_quota"), "fail");
});

test("a file that cannot be read is tried again for a while, and what is there of it stays", () => {
  assert.equal(of("file_unreadable"), "again");
  assert.equal(of("file_unreadable", { stuck: PATIENCE_OF_FILES }), "fail");
  assert.ok(isKept(new UploadError("file_unreadable")));
  assert.ok(canGoOn(new UploadError("file_unreadable")));
  assert.ok(!canGoOn(new UploadError("file_changed")));
  assert.ok(!isKept(new UploadError("file_too_large")));
});

test("what another page has taken over, or another file was chosen for, is still there", () => {
  assert.ok(isKept(new UploadError("taken_over")));
  assert.ok(isKept(new UploadError("file_changed")));
});

test("a wrong guess and an expired upload begin anew", () => {
  assert.equal(of("file_changed"), "fail");
  assert.equal(of("file_changed", { isGuess: true }), "anew");
  assert.equal(of("upload_over"), "fail");
  assert.equal(of("upload_over", { isFromBefore: true }), "anew");
});
