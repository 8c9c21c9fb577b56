/** What is remembered of one upload, so that a later page can go on with it; and the claim that keeps other tabs from doing so. */
import { claim } from "./tabs.js";
import { within } from "./within.js";

/** @typedef {import( "./records.js").UploadRecord} UploadRecord */
/** @typedef {{record: UploadRecord, unclaim: () => void}} Claim an unfinished upload that this tab alone drives */

export class Memo {
  #environment;
  #records;
  /** @type {UploadRecord | null} */
  #record = null;
  /** @type {(() => void) | null} */
  #unclaim = null;
  #live;

  /**
   * @param {import( "./environment.js").Environment} environment
   * @param {Map<string, Memo>} live what this page remembers and is at, by key
   */
  constructor(environment, live) {
    this.#environment = environment;
    this.#records = environment.records;
    this.#live = live;
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
    this.#live.set(record.key, this);
  }

  /**
   * Claim the upload, and have it on the disk, as far as the browser does that without delay.
   *
   * @param {UploadRecord} record of an upload that begins
   */
  async keep(record) {
    this.#record ??= record;
    this.#live.set(record.key, this);
    this.#unclaim ??= await within(this.#environment, claim(record.key), null, (unclaim) => unclaim?.());
    if (this.#record !== null) {
      await this.#write(this.#records.put(this.#record));
    }
    if (this.#record?.key !== record.key) {
      this.#write(this.#records.delete(record.key)); // it was over meanwhile
    }
  }

  /** @param {Promise<boolean>} change of the disk; that it fails is no matter */
  #write(change) {
    return within(this.#environment, change, false);
  }

  /**
   * It is finished: its receipt is kept, what only an unfinished one needs is not.
   *
   * @param {import( "./upload.js").Result} result
   */
  finish(result) {
    if (this.#record === null || result.receipt === undefined) {
      this.forget();
      return;
    }
    const { handle: _handle, fingerprint: _fingerprint, ...record } = this.#record;
    this.#record = { ...record, durable: result.size, result };
    this.#write(this.#records.put(this.#record));
  }

  /** @param {Partial<UploadRecord>} news */
  note(news) {
    if (this.#record !== null) {
      this.#record = { ...this.#record, ...news };
      this.#write(this.#records.put(this.#record));
    }
  }

  /** No page will ask for it: it is over, or its receipt was sent. */
  forget() {
    if (this.#record !== null) {
      this.#write(this.#records.delete(this.#record.key));
      this.leave();
    }
  }

  /** Another tab may drive it from now on. */
  release() {
    this.#unclaim?.();
    this.#unclaim = null;
    this.#live.delete(this.#record?.key ?? "");
  }

  /** It stays remembered, but this is not about it. */
  leave() {
    this.release();
    this.#record = null;
  }
}
