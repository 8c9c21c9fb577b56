/** The CRC-32C of prefixes of one file: where it is known, and how the next one follows. */
import { combine } from "../protocol/crc32c.js";

export class Prefixes {
  /** By the length of the prefix, bytes. @type {Map<number, number>} */
  #crcs = new Map([[0, 0]]);

  /** @param {number} length @returns {number | undefined} where it is not known */
  crc(length) {
    return this.#crcs.get(length);
  }

  /**
   * @param {number} length bytes
   * @param {number} crc of so many
   */
  set(length, crc) {
    this.#crcs.set(length, crc);
  }

  /**
   * @param {number} length of a prefix that is known
   * @param {number} size bytes that follow it
   * @param {number} crc of these alone
   */
  append(length, size, crc) {
    this.set(length + size, combine(/** @type {number} */ (this.crc(length)), crc, size));
  }

  /** The longest one that is known and not longer than that. @param {number} length @returns {[length: number, crc: number]} */
  below(length) {
    let longest = 0;
    for (const each of this.#crcs.keys()) {
      longest = each <= length && each > longest ? each : longest;
    }
    return [longest, /** @type {number} */ (this.crc(longest))];
  }

  /**
   * Nothing shorter than the longest prefix within `durable` bytes will be asked for.
   *
   * @param {number} durable
   * @param {number} position where the next chunk begins: its prefix stays
   */
  forget(durable, position) {
    const [floor] = this.below(durable);
    for (const length of this.#crcs.keys()) {
      if (length < floor && length > 0 && length !== position) {
        this.#crcs.delete(length);
      }
    }
  }
}
