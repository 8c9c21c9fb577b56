/**
 * Speed and time left that do not jump.
 *
 * The speed is a double exponential smoothing over time, corrected for its beginning, as the progress bars of
 * Rust's indicatif do it (`Estimator` in its state.rs): how much a sample counts depends on the time that it spans, so that
 * neither many small acknowledgements nor few large ones bend it, and the second stage takes the edge off a burst.
 * The correction, by what the weights so far add up to, is that of Adam (Kingma and Ba, 2015, section 3): without it the
 * speed would creep up from zero.
 *
 * The time left counts down like a clock, and is drawn towards what the speed says only slowly, but is never more than twice
 * as much, or less than half.
 */

/** Milliseconds after which a sample counts 1/e of what it did. */
const MEMORY = 3_000;
/** Samples that are closer together are one: a clock in a browser may be as coarse as 100 ms. */
const SHORTEST = 100;
/** Less than that was measured: nobody knows yet how long it takes. */
const ENOUGH = 800;
/** Milliseconds in which the time left goes 63 % of the way to a new estimate. */
const DRIFT = 4_000;
/** Seconds; whoever says more knows nothing. */
const FOREVER = 100 * 3600;

export class Rate {
  #done = 0;
  #at = 0;
  #running = false;
  /** Milliseconds that were measured, pauses left out. */
  #measured = 0;
  #first = 0;
  #second = 0;
  /** @type {number | undefined} */
  #remaining;
  #saidAt = 0;

  /**
   * A bout begins: what arrives from now on is measured.
   *
   * @param {number} done bytes that have arrived before
   * @param {number} [now] milliseconds
   */
  start(done, now = performance.now()) {
    this.#done = done;
    this.#at = this.#saidAt = now;
    this.#running = true;
  }

  /** A pause, or no network: this time is not slowness. The speed stays what it was. */
  stop() {
    this.#running = false;
    this.#remaining = undefined;
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
    const keep = Math.exp(-span / MEMORY);
    this.#measured += span;
    const sum = 1 - Math.exp(-this.#measured / MEMORY);
    this.#first = this.#first * keep + ((done - this.#done) / span) * 1000 * (1 - keep);
    this.#second = this.#second * keep + (this.#first / sum) * (1 - keep);
    this.#done = done;
    this.#at = now;
  }

  /**
   * As `update`, where nothing may have arrived; a bout that has ended is not begun again.
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
    return this.#measured === 0 ? 0 : this.#second / (1 - Math.exp(-this.#measured / MEMORY));
  }

  /**
   * Seconds that the rest will take.
   *
   * @param {number} bytes still to arrive
   * @param {number} [now] milliseconds
   * @returns {number | undefined} undefined: not known (yet), or nothing moves
   */
  remaining(bytes, now = performance.now()) {
    const estimate = bytes / this.rate;
    if (!this.#running || this.#measured < ENOUGH || !(estimate < FOREVER)) {
      this.#remaining = undefined;
      return bytes === 0 ? 0 : undefined;
    }
    const span = now - this.#saidAt;
    this.#saidAt = now;
    if (this.#remaining === undefined) {
      this.#remaining = estimate;
    } else {
      const expected = this.#remaining - span / 1000;
      const drawn = expected + (estimate - expected) * (1 - Math.exp(-span / DRIFT));
      this.#remaining = Math.max(estimate / 2, Math.min(drawn, estimate * 2));
    }
    return this.#remaining;
  }
}
