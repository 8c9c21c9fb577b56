import assert from "node:assert/strict";
import { test } from "node:test";

import { urgent } from "../../src/django_async_upload/static/django_async_upload/widget/list.js";
import { Formats } from "../../src/django_async_upload/static/django_async_upload/widget/formats.js";
import { Item, describe } from "../../src/django_async_upload/static/django_async_upload/widget/item.js";
import { ENGLISH as TEXTS } from "../../src/django_async_upload/static/django_async_upload/widget/english.js";

const formats = new Formats("en");

/** An item whose upload is in that state. */
function item(state, { size = 1024, fraction = 0, error = null, name = "a.txt", ...more } = {}) {
  return new Item({ name, size, upload: { state, error, progress: { fraction, rate: 0, ...more } } });
}

const view = (/** @type {Item} */ each) => describe(each, TEXTS, formats);

test("each state says what it is and offers what can be done", () => {
  const error = { code: "busy", message: "", retryable: true };
  const refused = { code: "type_refused", message: "", retryable: false };
  const rows = [
    [item("queued"), TEXTS.queued, "pause", "cancel", null],
    [item("uploading"), "Starting · 1.0 KB", "pause", "cancel", 0],
    [item("uploading", { fraction: 0.5, rate: 2048, remaining: 90 }), "50% · 512 bytes of 1.0 KB · 2.0 KB/s · 2 min left", "pause", "cancel", 0.5],
    [item("paused", { fraction: 0.5 }), "Paused · 50% · 512 bytes of 1.0 KB", "resume", "cancel", 0.5],
    [item("offline", { fraction: 0.5 }), TEXTS.offline, "pause", "cancel", 0.5],
    [item("unauthenticated"), TEXTS.unauthenticated, "continue", "cancel", null],
    [item("finishing", { fraction: 1, phase: "inspecting" }), TEXTS.inspecting, "", "cancel", 1],
    [item("finishing", { fraction: 1 }), TEXTS.verifying, "", "cancel", 1],
    [item("completed"), "Uploaded · 1.0 KB", "", "remove", null],
    [item("failed", { error }), TEXTS.errorBusy, "retry", "remove", null],
    [item("failed", { error: refused }), TEXTS.errorTypeUnknown, "", "remove", null],
    [item("cancelled"), TEXTS.cancelled, "retry", "remove", null],
    [new Item({ name: "a", size: 1000, refusal: "No." }), "No.", "", "remove", null],
    [new Item({ name: "a", size: 1024 }), "Uploaded · 1.0 KB", "", "remove", null],
  ];
  for (const [each, note, main, last, fraction] of rows) {
    const { state, ...shown } = view(each);
    assert.deepEqual([shown.note, shown.main, shown.last, shown.fraction], [note, main, last, fraction], state);
    assert.equal(shown.signIn, state === "unauthenticated");
  }
});

test("an unfinished upload asks for its file, or for a click where the file is known", () => {
  const unfinished = { key: "k", name: "a", size: 1024, sent: 256, canContinue: false };
  const asked = view(new Item({ name: "a", size: 1024, unfinished }));
  assert.equal(asked.note, "Not finished: 256 bytes of 1.0 KB · Choose the same file again to go on.");
  assert.deepEqual([asked.main, asked.last, asked.fraction], ["", "discard", 0.25]);
  const known = view(new Item({ name: "a", size: 1024, unfinished: { ...unfinished, canContinue: true } }));
  assert.equal(known.main, "continue");
  assert.match(known.note, /“Continue”/);
});

test("the bar of an empty file is full", () => {
  assert.equal(view(item("uploading", { size: 0 })).fraction, 1);
  assert.equal(view(item("finishing", { size: 0 })).fraction, 1);
});

test("a screen reader hears how far it is and how long it takes", () => {
  const { value } = view(item("uploading", { fraction: 0.456, remaining: 40 }));
  assert.equal(value, "45%, 40 sec left");
});

test("what needs the user has a row before what runs, what waits and what is done", () => {
  const items = [];
  for (const state of ["completed", "queued", "uploading", "failed"]) {
    for (let index = 0; index < 5; index += 1) items.push(item(state, { name: `${state} ${index}` }));
  }
  assert.equal(urgent(items, 20), items);
  const states = (/** @type {Item[]} */ some) => some.map(({ state }) => state[0]).join("");
  assert.equal(states(urgent(items, 5)), "fffff");
  assert.equal(states(urgent(items, 7)), "uufffff");
  assert.equal(states(urgent(items, 12)), "qquuuuufffff");
  assert.equal(states(urgent(items, 5, items[0])), "cfffff");
});
