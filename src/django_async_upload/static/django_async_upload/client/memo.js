/** What is remembered of one upload, so that a later page can go on with it; and the claim that keeps other tabs from doing so. */
import { fingerprint } from "../file/fingerprint.js";

/** @typedef {import( "./records.js").UploadRecord} UploadRecord */
/** @typedef {import( "./shelf.js").Claim} Claim */

/** Bytes, and milliseconds since it began: what is smaller and was quicker is as soon sent again as remembered. */
const SIZE = 1024 * 1024;
const AFTER = 5_000;

export class Memo {
  #shelf;
  #upload;
  #wanted;
  /** @type {UploadRecord | null} */
  #record = null;
  /** @type {(() => void) | null} */
  #unclaim = null;
  /** @type {Promise<void> | null} */
  #remembering = null;
  /** A record that was found by the fingerprint was of another file: no other one is looked for. */
  #wasWrong = false;

  /**
   * @param {import( "./shelf.js").Shelf} shelf
   * @param {import( "./upload.js").Upload} upload
   * @param {boolean} wanted false: it is never remembered
   */
  constructor(shelf, upload, wanted) {
    this.#shelf = shelf;
    this.#upload = upload;
    this.#wanted = wanted;
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
    this.#shelf.live.set(record.key, this);
  }

  /**
   * Before CREATE is sent: find what an earlier page began with the file, or note that it begins.
   *
   * @param {Blob} file
   * @returns {Promise<void>} rejects with an UploadError where the file cannot be read
   */
  async begin(file) {
    if (this.#wanted && file.size >= SIZE) {
      await (this.#remembering ??= this.#remember(file));
    }
  }

  /**
   * What turns out to take long is remembered, too.
   *
   * @param {number} age ms since it began
   * @returns {Promise<void> | null} null: there is nothing to wait for
   */
  grow(age) {
    const { file } = this.#upload;
    if (this.#wanted && age > AFTER && file !== null) {
      // It goes on without, where that fails.
      this.#remembering ??= this.#remember(file).catch(() => undefined);
    }
    return this.#remembering;
  }

  /** @param {Blob} file */
  async #remember(file) {
    const upload = this.#upload;
    const mark = this.#record?.fingerprint || (await fingerprint(file));
    if (this.#record === null && !upload.hasBegun && !this.#wasWrong) {
      const found = await this.#shelf.recall(upload, mark);
      if (found !== null) {
        upload.adopt(found, true);
      }
    }
    if (upload.isOver) {
      return;
    }
    this.#record = { ...upload.record(file), ...this.#record, ...upload.belongs, fingerprint: mark };
    const { key } = this.#record;
    this.#shelf.live.set(key, this);
    this.#unclaim ??= await this.#shelf.lock(key);
    // It may be over, or finished, meanwhile.
    const record = this.record;
    if (record?.key === key) {
      await this.#shelf.put(record);
    }
    if (this.record?.key !== key) {
      await this.#shelf.delete(key);
    }
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
    this.#shelf.put(this.#record);
  }

  /** @param {Partial<UploadRecord>} news */
  note(news) {
    if (this.#record !== null) {
      this.#record = { ...this.#record, ...news };
      this.#shelf.put(this.#record);
    }
  }

  /** No page will ask for it: it is over, or its receipt was sent. */
  forget() {
    if (this.#record !== null) {
      this.#shelf.delete(this.#record.key);
      this.leave();
    }
  }

  /** Another tab may drive it from now on. */
  release() {
    this.#unclaim?.();
    this.#unclaim = this.#remembering = null;
    this.#shelf.live.delete(this.#record?.key ?? "");
  }

  /** It stays remembered, and this upload has no record any longer. */
  leave() {
    this.release();
    this.#record = null;
  }

  /** The record that was found by the fingerprint is of another file. */
  disown() {
    this.#wasWrong = true;
    this.leave();
  }
}
