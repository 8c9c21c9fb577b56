/** What pages of this site remember of uploads at one address, and which of these this page has open. */
import { UploadError } from "../protocol/errors.js";
import { claim, claimed } from "./tabs.js";
import { within } from "./within.js";

/** @typedef {import( "./records.js").UploadRecord} UploadRecord */
/** @typedef {{record: UploadRecord, unclaim: () => void}} Claim an upload of an earlier page that this tab alone drives */

export class Shelf {
  #environment;
  /** Those that this page has open, by key. @type {Map<string, import( "./memo.js").Memo>} */
  live = new Map();

  /**
   * @param {string} url of the endpoint
   * @param {import( "./environment.js").Environment} environment
   */
  constructor(url, environment) {
    this.url = url;
    this.#environment = environment;
  }

  /**
   * Those that neither this page nor another tab has open, newest first.
   *
   * @param {string} owner
   * @returns {Promise<UploadRecord[]>}
   */
  async free(owner) {
    const records = await this.#all();
    const taken = await this.#wait(claimed(), new Set());
    return records.filter((record) => ownerOf(record) === owner && !taken.has(record.key) && !this.live.has(record.key));
  }

  /**
   * What seems to be this unfinished upload; the server compares all of it.
   *
   * @param {import( "./upload.js").Upload} upload
   * @param {string} fingerprint of its file
   * @returns {Promise<Claim | null>}
   */
  async recall(upload, fingerprint) {
    const { digest, metadata } = upload.create;
    for (const record of await this.free(upload.owner)) {
      const isSame =
        record.result === undefined &&
        record.fingerprint === fingerprint &&
        (record.digest || undefined) === digest &&
        JSON.stringify(record.metadata ?? {}) === JSON.stringify(metadata);
      if (isSame) {
        try {
          return await this.claim(record);
        } catch {
          continue; // another tab was faster
        }
      }
    }
    return null;
  }

  /**
   * Keep other tabs from it.
   *
   * @param {UploadRecord} record
   * @returns {Promise<Claim>}
   * @throws {UploadError} `taken_over`
   */
  async claim(record) {
    const unclaim = await this.lock(record.key);
    if (unclaim === null || this.live.has(record.key)) {
      unclaim?.();
      throw new UploadError("taken_over", { message: "Another tab goes on with this upload." });
    }
    return { record, unclaim };
  }

  /**
   * @param {string} key
   * @returns {Promise<(() => void) | null>} null: another tab has it
   */
  lock(key) {
    return this.#wait(claim(key), () => undefined, (late) => late?.());
  }

  /**
   * @param {UploadRecord} record
   * @returns {Promise<boolean>} false: it is not on the disk, or not yet
   */
  put(record) {
    return this.#wait(this.#environment.records.put(record), false);
  }

  /**
   * @param {string} key
   * @returns {Promise<boolean>}
   */
  delete(key) {
    return this.#wait(this.#environment.records.delete(key), false);
  }

  /** @param {string} key */
  async forget(key) {
    this.live.get(key)?.forget();
    await this.delete(key);
  }

  /** @param {string} owner the tag of those that stay */
  async forgetOthers(owner) {
    const others = (await this.#all()).filter((record) => ownerOf(record) !== owner);
    await Promise.all(others.map(({ key }) => this.forget(key)));
  }

  close() {
    this.#environment.records.close();
  }

  #all() {
    return this.#wait(this.#environment.records.all(this.url), /** @type {UploadRecord[]} */ ([]));
  }

  /**
   * @template T, O
   * @param {Promise<T>} service
   * @param {O} otherwise
   * @param {(result: T) => void} [late]
   */
  #wait(service, otherwise, late) {
    return within(this.#environment, service, otherwise, late);
  }
}

/** @param {UploadRecord} record */
function ownerOf({ owner = "" }) {
  return owner;
}
