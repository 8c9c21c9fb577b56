/** What is remembered of one upload, so that a later page can go on with it; and the claim that keeps other tabs from doing so. */
import { claim } from "./tabs.js";

/** @typedef {import( "./records.js").UploadRecord} UploadRecord */
/** @typedef {{record: UploadRecord, unclaim: () => void}} Claim an unfinished upload that this tab alone drives */

export class Memo {
  #records;
  /** @type {UploadRecord | null} */
  #record = null;
  /** @type {(() => void) | null} */
  #unclaim = null;

  /** @param {import( "./environment.js").Environment["records"]} records */
  constructor(records) {
    this.#records = records;
  }

  /** null: nothing is remembered (yet). */
  get record() {
    return this.#record;
  }

  /**
   * Go on with what an earlier page remembered.
   *
   * @param {Claim} claim
   */
  adopt({ record, unclaim }) {
    this.#record = record;
    this.#unclaim = unclaim;
  }

  /**
   * Claim the upload, and have it on the disk.
   *
   * @param {UploadRecord} record of an upload that begins
   */
  async keep(record) {
    this.#record ??= record;
    this.#unclaim ??= await claim(record.key);
    await this.#records.put(this.#record ?? record);
  }

  /** @param {Partial<UploadRecord>} news */
  note(news) {
    if (this.#record !== null) {
      this.#record = { ...this.#record, ...news };
      this.#records.put(this.#record);
    }
  }

  /** Nobody can go on with it: it is over. */
  forget() {
    if (this.#record !== null) {
      this.#records.delete(this.#record.key);
      this.#record = null;
    }
  }

  /** Another tab may drive it from now on. */
  release() {
    this.#unclaim?.();
    this.#unclaim = null;
  }

  /** It stays remembered, but this is not about it. */
  leave() {
    this.release();
    this.#record = null;
  }
}
