/** How far one upload is, how fast, and for how long still. */
import { Rate } from "./rate.js";

/** @typedef {import( "./attachment.js").Place} Place */

/**
 * Bytes from the start of the file, unless said otherwise.
 *
 * @typedef {object} Progress
 * @property {number} sent given to the socket
 * @property {number} received checked by the server
 * @property {number} durable would survive a crash of the server
 * @property {number} size of the file
 * @property {number} fraction received / size, 0 to 1
 * @property {number} rate bytes per second, smooth; 0 while unknown
 * @property {number} [remaining] seconds, where they can be told
 * @property {string} [phase] while `finishing`: `verifying`, `inspecting` or `finalizing`
 */

export class Meter {
  #rate = new Rate();
  /** @type {Place} */
  #place = { sent: 0, received: 0, durable: 0 };
  /** What the server does with the file after it has all of it. @type {string | undefined} */
  phase;

  /**
   * Begin, or begin again, at a place.
   *
   * @param {Place} place
   * @param {number} now ms
   */
  start({ sent, received, durable }, now) {
    this.#place = { sent, received, durable };
    this.#rate.start(received, now);
  }

  /**
   * @param {Place} place
   * @param {number} now ms
   * @returns {boolean} the server has more than before
   */
  move({ sent, received, durable }, now) {
    const gained = received > this.#place.received;
    this.#place = { sent, received, durable };
    this.#rate.update(received, now);
    return gained;
  }

  /**
   * Time has passed, in which perhaps nothing has arrived.
   *
   * @param {number} now ms
   */
  tick(now) {
    this.#rate.tick(this.#place.received, now);
  }

  /**
   * So much of the file an earlier page has sent: it does not count for the speed.
   *
   * @param {number} offset
   */
  set(offset) {
    this.#place = { sent: offset, received: offset, durable: offset };
  }

  /** The time from now on is not slowness. */
  stop() {
    this.#rate.stop();
  }

  /**
   * @param {number} size
   * @param {import( "./upload.js").UploadState} state
   * @param {number} now ms
   * @returns {Progress}
   */
  read(size, state, now) {
    const { sent, received, durable } = this.#place;
    const isMoving = state === "uploading";
    return {
      sent,
      received,
      durable,
      size,
      fraction: state === "completed" ? 1 : size === 0 ? 0 : received / size,
      rate: isMoving ? this.#rate.rate : 0,
      remaining: isMoving ? this.#rate.remaining(size - received, now) : undefined,
      phase: this.phase,
    };
  }
}
