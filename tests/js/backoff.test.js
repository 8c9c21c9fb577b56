import assert from "node:assert/strict";
import { test } from "node:test";
import { Backoff } from "../../src/django_async_upload/static/django_async_upload/client/backoff.js";

test("the ceiling doubles up to the largest, and begins anew after a gain", () => {
  const backoff = new Backoff({ first: 100, largest: 1000, random: () => 0.5 });
  const delays = Array.from({ length: 6 }, () => backoff.delay());
  assert.deepEqual(delays, [50, 100, 200, 400, 500, 500]);
  backoff.reset();
  assert.equal(backoff.delay(), 50);
});

test("no delay is shorter than what the server asked for", () => {
  const backoff = new Backoff({ first: 100, random: () => 0 });
  assert.equal(backoff.delay(2.5), 2500);
});

test("delays are spread over the whole range", () => {
  const delays = Array.from({ length: 1000 }, () => new Backoff({ first: 100 }).delay());
  assert.ok(Math.min(...delays) < 10 && Math.max(...delays) > 90);
  assert.ok(delays.every((delay) => delay >= 0 && delay < 100));
});

test("the delay is a number after a thousand failures, too", () => {
  const backoff = new Backoff({ random: () => 1 });
  for (let count = 0; count < 2000; count++) {
    backoff.delay();
  }
  assert.equal(backoff.delay(), 30_000);
});
