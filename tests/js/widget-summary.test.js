import assert from "node:assert/strict";
import { test } from "node:test";

import { sum } from "../../src/django_async_upload/static/django_async_upload/widget/summary.js";
import { Formats } from "../../src/django_async_upload/static/django_async_upload/widget/formats.js";
import { Milestones } from "../../src/django_async_upload/static/django_async_upload/widget/milestones.js";
import { ENGLISH as TEXTS } from "../../src/django_async_upload/static/django_async_upload/widget/english.js";
import { Item } from "../../src/django_async_upload/static/django_async_upload/widget/item.js";

const formats = new Formats("en");

/** An item whose upload is in that state. */
function item(state, { size = 1024, fraction = 0, error = null, name = "a.txt", ...more } = {}) {
  return new Item({ name, size, upload: { state, error, progress: { fraction, rate: 0, ...more } } });
}

test("the sum leaves out what will not arrive, and what was only offered", () => {
  const unfinished = new Item({ name: "a", size: 9, unfinished: { sent: 3 } });
  const items = [item("completed"), item("uploading", { fraction: 0.5 }), item("paused"), item("failed"), unfinished];
  const large = item("uploading", { size: 2 ** 20, fraction: 0.25 });
  const amounts = { files: 3, filesDone: 1, bytes: 2 ** 20, bytesDone: 2 ** 18 };
  const expected = { count: 5, done: 1, broken: 1, busy: 2, paused: 1, retryable: 0, size: 3072 + 2 ** 20, arrived: 1536 + 2 ** 18 };
  assert.deepEqual(sum([...items, large]), { ...expected, amounts });
});

/** What is said while an upload goes through these fractions, one each second. */
function said(steps) {
  const words = [];
  const milestones = new Milestones({ say: (text) => words.push(text) }, TEXTS, formats);
  steps.forEach((items, second) => milestones.pass(items, sum(items), second * 1000));
  return words;
}

test("a long upload says each quarter once, and its end", () => {
  const steps = Array.from({ length: 100 }, (_, second) => [item("uploading", { fraction: second / 100 })]);
  assert.deepEqual(said([...steps, [item("completed")], [item("completed")]]), [
    "25% uploaded",
    "50% uploaded",
    "75% uploaded",
    "Uploaded: a.txt",
  ]);
});

test("a short upload says only its end", () => {
  const steps = [0, 0.3, 0.6, 0.9].map((fraction) => [item("uploading", { fraction })]);
  assert.deepEqual(said([...steps, [item("completed")]]), ["Uploaded: a.txt"]);
});

test("the network that goes and comes back is said once each", () => {
  const steps = ["uploading", "offline", "offline", "uploading", "uploading"].map((state) => [item(state)]);
  assert.deepEqual(said(steps), [TEXTS.offline, TEXTS.saidOnline]);
});

test("many files end with one sentence, and with none where some failed", () => {
  const done = [item("completed"), item("completed")];
  assert.deepEqual(said([[item("uploading"), item("uploading")], done, done]), [TEXTS.saidAllCompleted]);
  assert.deepEqual(said([[item("completed"), item("failed")]]), []);
});
