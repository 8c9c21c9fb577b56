// Speed and time left, on a clock of their own.
import assert from "node:assert/strict";
import { test } from "node:test";
import { Rate } from "../../src/django_async_upload/static/django_async_upload/client/rate.js";

/** Bytes that have arrived after each 250 ms; calls `each` with the rate and the time left. */
function run(rate, arrivals, total, each = () => {}) {
  arrivals.forEach((done, index) => {
    const now = 1000 + (index + 1) * 250;
    rate.update(done, now);
    each(rate.rate, rate.remaining(total - done, now), index);
  });
}

const steady = (count, speed) => Array.from({ length: count }, (_, i) => (i + 1) * speed * 0.25);
const near = (actual, expected, share) =>
  assert.ok(Math.abs(actual - expected) <= share * expected, `${actual} is not about ${expected}`);

test("a steady speed is told at once and stays", () => {
  const rate = new Rate();
  rate.start(0, 1000);
  run(rate, steady(40, 1e6), 40e6, (speed) => near(speed, 1e6, 1e-6));
});

test("bursts hardly change the speed", () => {
  // Nothing for 750 ms, then four times as much.
  const rate = new Rate();
  rate.start(0, 1000);
  const bursts = Array.from({ length: 80 }, (_, i) => Math.floor((i + 1) / 4) * 1e6);
  run(rate, bursts, 100e6, (speed, _, index) => index > 24 && near(speed, 1e6, 0.1));
});

test("after a change the speed follows within seconds", () => {
  const rate = new Rate();
  rate.start(0, 1000);
  const slow = steady(40, 1e6);
  const fast = steady(60, 4e6).map((done) => done + slow.at(-1));
  run(rate, [...slow, ...fast], 100e6);
  near(rate.rate, 4e6, 0.1);
});

test("the time left counts down and never jumps, however jagged the arrivals are", () => {
  const rate = new Rate();
  rate.start(0, 1000);
  let seed = 7;
  let done = 0;
  const jagged = Array.from({ length: 200 }, () => {
    seed = (seed * 16807) % 2147483647;
    done += (seed / 2147483647) * 5e5;
    return done;
  });
  let before;
  run(rate, jagged, 60e6, (_, left, index) => {
    if (before !== undefined && index > 20) {
      assert.ok(Math.abs(left - before) < 2.5, `from ${before} to ${left}`);
    }
    before = left;
  });
  near(before, (60e6 - done) / 1e6, 0.25);
});

test("a pause does not lower the speed", () => {
  const rate = new Rate();
  rate.start(0, 1000);
  run(rate, steady(20, 1e6), 40e6);
  rate.stop();
  assert.equal(rate.remaining(1e6, 20_000), undefined);
  rate.start(5e6, 60_000);
  near(rate.rate, 1e6, 1e-6);
  rate.update(6e6, 61_000);
  near(rate.rate, 1e6, 1e-6);
  near(rate.remaining(5e6, 61_000), 5, 1e-6);
});

test("nothing is said before something is known, nor when nothing moves", () => {
  const rate = new Rate();
  assert.equal(rate.rate, 0);
  assert.equal(rate.remaining(10, 0), undefined);
  rate.start(0, 1000);
  rate.update(1e5, 1200);
  assert.equal(rate.remaining(1e6, 1200), undefined);
  for (let now = 2000; now < 200_000; now += 1000) {
    rate.update(1e5, now);
  }
  assert.ok(rate.rate < 1);
  assert.equal(rate.remaining(1e6, 200_000), undefined);
  assert.equal(rate.remaining(0, 200_000), 0);
});

test("bytes that were lost are not a negative speed", () => {
  const rate = new Rate();
  rate.start(0, 1000);
  run(rate, steady(8, 1e6), 40e6);
  rate.update(5e5, 3250);
  near(rate.rate, 1e6, 1e-6);
  rate.update(1e6, 3750);
  near(rate.rate, 1e6, 1e-6);
});

test("a slow beginning is forgotten before the end", () => {
  const rate = new Rate();
  rate.start(0, 1000);
  const slow = steady(8, 5e4);
  const fast = steady(28, 4e6).map((done) => 1e5 + done);
  let last;
  run(rate, [...slow, ...fast], 29.1e6, (_, left) => (last = left));
  assert.ok(last < 1, `${last} s for the last MB, at 4 MB/s`);
});
