/**
 * Speed and time left that do not jump.
 *
 * The speed is a double exponential smoothing over time, corrected for its beginning, as the progress bars of
 * Rust's indicatif do it (`Estimator` in its state.rs): how much a sample counts depends on the time that it spans, so that
 * neither many small acknowledgements nor few large ones bend it, and the second stage takes the edge off a burst.
 * The correction, by what the weights so far add up to, is that of Adam (Kingma and Ba, 2015, section 3): without it the
 * speed would creep up from zero. The memory is a third of what was measured until it is full.
 *
 * The time left counts down like a clock, and is drawn towards what the speed says only slowly, but is never more than twice
 * as much, or less than half.
 */

/** Milliseconds after which a sample counts 1/e of what it did. */
const MEMORY = 3_000;
/** And in the beginning, which is slower than what follows, at least. */
const SHORT_MEMORY = 500;
/** Samples that are closer together are one: a clock in a browser may be as coarse as 100 ms. */
const SHORTEST = 100;
/** Milliseconds that have to be measured before a time left is given. */
const ENOUGH = 800;
/** Milliseconds in which the time left goes 63 % of the way to a new estimate. */
const DRIFT = 4_000;
/** Seconds; a longer time left is not given. */
const FOREVER = 100 * 3600;

export class Rate {
  #done = 0;
  #at = 0;
  #running = false;
  /** Milliseconds that were measured, pauses left out. */
  #measured = 0;
  #first = 0;
  #second = 0;
  /** What the weights of the samples add up to. */
  #weight = 0;
  #countdown = new Countdown();

  /**
   * What arrives from now on is measured.
   *
   * @param {number} done bytes that have arrived before
   * @param {number} [now] milliseconds
   */
  start(done, now = performance.now()) {
    this.#done = done;
    this.#at = now;
    this.#countdown.start(now);
    this.#running = true;
  }

  /** A pause, or no network: this time is not slowness. The speed stays what it was. */
  stop() {
    this.#running = false;
    this.#countdown.stop();
  }

  /**
   * Something has arrived.
   *
   * @param {number} done bytes that have arrived up to now; where it is lower than before, bytes were lost
   *   and the sample is dropped
   * @param {number} [now] milliseconds
   */
  update(done, now = performance.now()) {
    if (!this.#running || done < this.#done) {
      this.start(done, now);
      return;
    }
    const span = now - this.#at;
    if (span < SHORTEST) {
      return;
    }
    this.#measured += span;
    const keep = Math.exp(-span / Math.max(SHORT_MEMORY, Math.min(MEMORY, this.#measured / 3)));
    this.#weight = this.#weight * keep + (1 - keep);
    this.#first = this.#first * keep + ((done - this.#done) / span) * 1000 * (1 - keep);
    this.#second = this.#second * keep + (this.#first / this.#weight) * (1 - keep);
    this.#done = done;
    this.#at = now;
  }

  /**
   * As `update`, where nothing may have arrived; a measurement that was stopped is not begun again.
   *
   * @param {number} done bytes that have arrived up to now
   * @param {number} now milliseconds
   */
  tick(done, now) {
    if (this.#running) {
      this.update(done, now);
    }
  }

  /** Bytes per second; 0 while nothing is known. */
  get rate() {
    return this.#measured === 0 ? 0 : this.#second / this.#weight;
  }

  /**
   * Seconds that the rest will take.
   *
   * @param {number} bytes still to arrive
   * @param {number} [now] milliseconds
   * @returns {number | undefined} undefined: not known (yet), or nothing moves
   */
  remaining(bytes, now = performance.now()) {
    if (!this.isKnown) {
      this.#countdown.stop();
      return bytes === 0 ? 0 : undefined;
    }
    return this.#countdown.next(bytes / this.rate, now) ?? (bytes === 0 ? 0 : undefined);
  }

  /** Enough was measured to tell a time by it. */
  get isKnown() {
    return this.#running && this.#measured >= ENOUGH;
  }
}

/** Counts down to estimates that jump. */
export class Countdown {
  /** @type {number | undefined} */
  #remaining;
  #saidAt = 0;
  /** Milliseconds for which it has counted. */
  #age = 0;

  /** @param {number} now milliseconds */
  start(now) {
    this.#saidAt = now;
  }

  stop() {
    this.#remaining = undefined;
    this.#age = 0;
  }

  /**
   * @param {number} estimate seconds
   * @param {number} now milliseconds
   * @returns {number | undefined} seconds to show; undefined: for ever
   */
  next(estimate, now) {
    const span = now - this.#saidAt;
    this.#saidAt = now;
    if (!(estimate < FOREVER)) {
      this.#remaining = undefined;
    } else if (this.#remaining === undefined) {
      this.#remaining = estimate;
    } else {
      const expected = this.#remaining - span / 1000;
      this.#age += span;
      const drift = Math.min(DRIFT, this.#age / 3); // the first estimates are the worst
      const drawn = expected + (estimate - expected) * (1 - Math.exp(-span / drift));
      this.#remaining = Math.max(estimate / 2, Math.min(drawn, estimate * 2));
    }
    return this.#remaining;
  }
}
