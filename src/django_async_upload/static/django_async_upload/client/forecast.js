/**
 * How fast many files arrive, and when all will have: of small ones a server takes so many a second, of all others so many bytes. Bytes
 * alone would take a thousand small files for a slow line, and then promise hours for the large one beside them.
 */
import { Countdown, Rate } from "./rate.js";

/** Bytes; up to here it is the number that counts. */
export const SMALL = 64 * 1024;

/**
 * What there is, and what of it has arrived.
 *
 * @typedef {object} Amounts
 * @property {number} files small ones
 * @property {number} filesDone
 * @property {number} bytes of all others
 * @property {number} bytesDone
 */

export class Forecast {
  #files = new Rate();
  #bytes = new Rate();
  #countdown = new Countdown();
  #isRunning = false;

  /**
   * @param {Amounts} amounts
   * @param {boolean} isRunning false: this time is not slowness
   * @param {number} now milliseconds
   * @returns {number | undefined} seconds until all has arrived; undefined: not known (yet), or nothing moves
   */
  update({ files, filesDone, bytes, bytesDone }, isRunning, now) {
    if (!isRunning) {
      this.#files.stop();
      this.#bytes.stop();
      this.#countdown.stop();
    } else if (!this.#isRunning) {
      this.#files.start(filesDone, now);
      this.#bytes.start(bytesDone, now);
      this.#countdown.start(now);
    }
    this.#isRunning = isRunning;
    if (!isRunning) {
      return undefined;
    }
    this.#files.update(filesDone, now);
    this.#bytes.update(bytesDone, now);
    const known = this.#files.isKnown || this.#bytes.isKnown;
    if (!known) {
      return undefined;
    }
    // They go side by side, and share the line: the time is between the longer one and the sum.
    const estimate = Math.hypot(seconds(files - filesDone, this.#files.rate), seconds(bytes - bytesDone, this.#bytes.rate));
    return this.#countdown.next(estimate, now);
  }
}

/**
 * @param {number} amount
 * @param {number} rate
 */
function seconds(amount, rate) {
  return amount <= 0 ? 0 : amount / rate;
}
