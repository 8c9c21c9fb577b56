import assert from "node:assert/strict";
import test from "node:test";

import { SLICE, inSlices } from "../../src/django_async_upload/static/django_async_upload/client/slices.js";

/** @param {number} milliseconds */
function work(milliseconds) {
  const end = performance.now() + milliseconds;
  while (performance.now() < end);
}

test("items for which there is time are worked on at once", () => {
  /** @type {number[]} */
  const done = [];
  void inSlices([1, 2, 3], (each) => void done.push(each));
  assert.deepEqual(done, [1, 2, 3]);
});

test("other tasks have their turn between slices", async () => {
  let tasks = 0;
  let pauses = 0;
  const timer = setInterval(() => (tasks += 1), 0);
  /** @type {number[]} */
  const seen = [];
  const slow = () => {
    work(SLICE + 1);
    seen.push(tasks);
  };
  await inSlices([1, 2, 3], slow, () => (pauses += 1));
  clearInterval(timer);
  assert.equal(pauses, 2);
  assert.equal(seen[0], 0);
  assert.ok(seen[1] > 0);
});

test("work that returns false is the last, at once and after a pause", async () => {
  let count = 0;
  await inSlices([1, 2, 3], () => ++count < 2);
  assert.equal(count, 2);
  await inSlices([1, 2, 3, 4], () => {
    work(SLICE + 1);
    return ++count < 4;
  });
  assert.equal(count, 4);
});
