/**
 * When to try again: exponential, with full jitter, so that many clients do not come back in step.
 *
 * See "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
 */
export class Backoff {
  #first;
  #largest;
  #random;

  /**
   * @param {object} [options]
   * @param {number} [options.first] ceiling of the first delay, milliseconds
   * @param {number} [options.largest] no ceiling is higher, milliseconds
   * @param {() => number} [options.random] from 0 to below 1
   */
  constructor({ first = 250, largest = 30_000, random = Math.random } = {}) {
    this.#first = first;
    this.#largest = largest;
    this.#random = random;
    /** How many delays were asked for since the last {@link reset}. */
    this.failures = 0;
  }

  /**
   * Milliseconds to wait after one more failure, at least what the server asked for.
   *
   * @param {number} [retryAfter] seconds
   * @returns {number}
   */
  delay(retryAfter = 0) {
    const ceiling = Math.min(this.#largest, this.#first * 2 ** this.failures);
    this.failures += 1;
    return retryAfter * 1000 + this.#random() * ceiling;
  }

  /** Something was gained. */
  reset() {
    this.failures = 0;
  }
}
