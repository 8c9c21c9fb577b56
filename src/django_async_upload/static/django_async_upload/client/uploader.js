/** Any number of uploads over one connection to the server, and those that earlier pages left. */
import { browser } from "./environment.js";
import { Cancellation } from "./cancellation.js";
import { UploadError } from "../protocol/errors.js";
import { Shelf } from "./shelf.js";
import { Turns } from "./turns.js";
import { Upload } from "./upload.js";

/** @typedef {import( "./records.js").UploadRecord} UploadRecord */
/** @typedef {import( "./upload.js").UploadOptions} UploadOptions */

/**
 * @typedef {object} UploaderOptions
 * @property {string} url `ws:`, `wss:`, or a path on the page's own host
 * @property {string} [field] the token of a form's field, for every upload that brings none of its own
 * @property {number} [parallel] uploads under way that are larger than a window; default 3. Smaller ones share the rest of
 *   the server's streams
 * @property {(error?: UploadError) => Promise<string | undefined>} [authenticate] a fresh ticket; called when the server
 *   wants a login, with its error, and shortly before a ticket expires, without one. Where it gives undefined, the server is
 *   asked again with the page's cookies; where it gives the ticket that was refused, the uploads fail
 * @property {boolean} [remember] so that a later page can go on with an upload, or post its receipt; default true
 * @property {string} [owner] an opaque tag of the owner: what was begun with another one is never shown
 */

/**
 * An upload that an earlier page, or one in another tab that is gone, did not finish, or finished without its receipt being sent.
 *
 * @typedef {object} Remembered
 * @property {string} key the upload's, as before
 * @property {string} name of the file
 * @property {string} type of the file, `""` where the browser named none
 * @property {number} size bytes
 * @property {number} sent bytes that the server has for sure
 * @property {string} field the token of the form's field that it belongs to; `""` without one
 * @property {unknown} place what `add` got
 * @property {number} lastModified milliseconds since 1970
 * @property {boolean} isFinished the server has all of it, and `continue` gives it back `completed`, with its receipt
 * @property {string} [receipt] of a finished one
 * @property {boolean} canContinue without the file being picked again
 * @property {() => Promise<Upload>} continue call it in a click, since the browser may ask for permission. Where it cannot,
 *   `add` the file again: it is recognised by its content
 * @property {() => Promise<void>} discard remember it no longer, and cancel it on the server; of a finished
 *   one the file is deleted there, unless an object, an API or a receiver has taken it
 */

/**
 * Uploads any number of files over one WebSocket, which it opens when there is something to do and opens again when it is lost.
 *
 * @fires upload `{upload}`: one was added, or goes on from an earlier page
 * @fires connection `{state, retryIn, error}`: `connection` has changed. Where it waits, `retryIn` are the seconds until
 *   it tries again, and `error` says why
 * @fires unreachable `{unreachable}`: the property has changed
 * @fires warning `{code, message}`: something that a developer should know, said in the console, too. `deflate`: the server
 *   compresses what is sent, which costs most of the speed. `unreachable`: what may keep WebSockets from the server
 */
export class Uploader extends EventTarget {
  /** @type {Partial<UploaderOptions>} */
  #options;
  #shelf;
  #turns;
  #isClosed = false;

  /**
   * @param {UploaderOptions} options
   * @param {import( "./environment.js").Environment} [environment] for tests
   */
  constructor({ url, field, parallel = 3, authenticate, remember, owner }, environment = browser()) {
    super();
    const address = new URL(url, environment.base);
    address.protocol = address.protocol.replace("http", "ws");
    this.#options = { field, remember, owner };
    this.#shelf = new Shelf(address.href, environment);
    this.#turns = new Turns(address.href, environment, parallel, authenticate, this);
  }

  /**
   * Upload a file. It begins at once, or when its turn comes.
   *
   * @param {File | Blob | FileSystemFileHandle} what a handle lets a later page go on without the file being picked again
   * @param {UploadOptions} [options]
   * @returns {Upload}
   */
  add(what, options = {}) {
    return this.#start(new Upload(this.#turns, this.#shelf, what, { ...this.#options, ...options }));
  }

  /** Those that are not completed, failed or cancelled, in the order of their addition. @returns {readonly Upload[]} */
  get uploads() {
    return [...this.#turns.uploads];
  }

  /**
   * `idle`: nothing to do. `waiting`: for the network or a login, it goes on by itself. `closed`: by `close`, or because the
   * server refuses this page; a further upload tries again.
   *
   * @returns {"idle" | "connecting" | "open" | "waiting" | "closed"}
   */
  get connection() {
    return this.#turns.line.state;
  }

  /**
   * HTTP gets through to the server, and no WebSocket does: a proxy, or no ASGI server. It is true only after 30 seconds, never
   * while the browser is offline, and false again as soon as a WebSocket is opened, which is tried on and on.
   *
   * @returns {boolean}
   */
  get unreachable() {
    return this.#turns.line.isUnreachable;
  }

  /**
   * What earlier pages left at this address, newest first: what is not finished, and what is, but its receipt was not sent. Those
   * that this page or another tab has open are left out.
   *
   * @param {string} [owner] the tag that they were begun with; default: the uploader's
   * @returns {Promise<Remembered[]>}
   */
  async remembered(owner = this.#options.owner ?? "") {
    return (await this.#shelf.free(owner)).map((record) => this.#offer(record));
  }

  /**
   * Remember an upload no longer, because its receipt was sent or is not wanted. On the server nothing changes.
   *
   * @param {string} key
   * @returns {Promise<void>} when it is gone from the disk
   */
  async forget(key) {
    await this.#shelf.forget(key);
  }

  /**
   * Remember no longer what was begun at this address with other owner tags: another user uses the browser now.
   *
   * @param {string} [owner] the tag of those that stay; default: the uploader's
   * @returns {Promise<void>} when the rest is gone from the disk
   */
  async forgetOthers(owner = this.#options.owner ?? "") {
    await this.#shelf.forgetOthers(owner);
  }

  /** Stop. What is not finished stays on the server, for a later page. @returns {void} */
  close() {
    if (this.#isClosed) {
      return;
    }
    this.#isClosed = true;
    this.uploads.forEach((upload) => upload.leave());
    this.#turns.close();
    this.#shelf.close();
  }

  /** @param {Upload} upload */
  #start(upload) {
    if (this.#isClosed) {
      throw new TypeError("The uploader is closed.");
    }
    this.#turns.enqueue(upload);
    this.#dispatch("upload", { upload });
    return upload;
  }

  /**
   * @param {string} type
   * @param {unknown} detail
   */
  #dispatch(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  /**
   * @param {UploadRecord} record
   * @returns {Remembered}
   */
  #offer(record) {
    const { key, name, size, type, durable: sent = 0, field = "", place, lastModified, handle } = record;
    const isFinished = record.result !== undefined;
    return {
      ...{ key, name, size, type, sent, field, place, lastModified, isFinished, receipt: record.result?.receipt },
      canContinue: isFinished || handle !== undefined,
      continue: async () => {
        if (isFinished) {
          return new Upload(this.#turns, this.#shelf, null, {}, await this.#shelf.claim(record));
        }
        if (handle === undefined || !(await mayRead(handle))) {
          throw new UploadError("file_unreadable", { message: "The file has to be chosen again." });
        }
        return this.#start(new Upload(this.#turns, this.#shelf, handle, {}, await this.#shelf.claim(record)));
      },
      discard: async () => {
        await this.forget(key);
        this.#turns.abandon(new Cancellation(this.#turns, createOf(record), record.upload, isFinished));
      },
    };
  }
}

/** The fields of its CREATE, as they were sent. @param {UploadRecord} record */
function createOf({ key, name, size, type, digest, metadata = {} }) {
  return { key, name, size, content_type: type, digest: digest || undefined, metadata };
}

/**
 * @param {FileSystemFileHandle} handle
 * @returns {Promise<boolean>}
 */
async function mayRead(handle) {
  // Only Chromium keeps handles, and asks.
  const asking = /** @type {{queryPermission?: Function, requestPermission?: Function}} */ (handle);
  const state = await asking.queryPermission?.({ mode: "read" });
  return state !== "prompt" ? state !== "denied" : (await asking.requestPermission?.({ mode: "read" })) === "granted";
}
