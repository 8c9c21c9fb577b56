/**
 * The uploads of one component: a list that a framework can look at, which is another one whenever something has changed.
 */
import { Uploader } from "./client.js";

/** @import { Progress, Result, Upload, UploaderOptions, UploadOptions, UploadState } from "./client.js" */
/** @import { UploadError } from "./client.js" */

/**
 * How an upload stands at one moment.
 *
 * @typedef {object} UploadView
 * @property {Upload} upload to `pause`, `resume`, `retry` and `cancel`
 * @property {string} key does not change
 * @property {string} name of the file
 * @property {number} size bytes
 * @property {UploadState} state
 * @property {Progress} progress
 * @property {Result | null} result once it is `completed`
 * @property {UploadError | null} error what it waits for or failed with
 */

/** Milliseconds: as often as a screen shows something new. */
const FRAME = 16;
const EVENTS = ["progress", "state", "completed", "error"];
const OVER = new Set(["completed", "failed", "cancelled"]);

export class Uploads {
  #source;
  /** @type {Uploader | null} made when there is something to do: never on a server */
  #uploader = null;
  /** @type {readonly UploadView[]} */
  #views = [];
  /** @type {Upload[]} */
  #uploads = [];
  /** @type {Map<Upload, Result>} */
  #results = new Map();
  /** @type {Set<() => void>} */
  #listeners = new Set();
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;

  /** @param {Uploader | UploaderOptions} source an uploader that others use too, or what to make one of */
  constructor(source) {
    this.#source = source;
    if (source instanceof Uploader) this.#uploader = source;
  }

  /** @returns {Uploader} */
  get uploader() {
    return (this.#uploader ??= new Uploader(/** @type {UploaderOptions} */ (this.#source)));
  }

  /**
   * @param {Iterable<File | Blob | FileSystemFileHandle>} files
   * @param {UploadOptions} [options]
   * @returns {Upload[]}
   */
  add = (files, options) => {
    const added = [...files].map((each) => this.uploader.add(each, options));
    for (const upload of added) {
      for (const event of EVENTS) upload.addEventListener(event, this);
      upload.addEventListener("completed", (event) => {
        this.#results.set(upload, /** @type {CustomEvent<{result: Result}>} */ (event).detail.result);
      });
    }
    this.#uploads.push(...added);
    this.#look();
    return added;
  };

  /**
   * Take an upload off the list. One that is not finished is thrown away, here and on the server; of one that is, the receipt was
   * sent, or is not wanted.
   * @param {Upload} upload
   */
  remove = (upload) => {
    for (const event of EVENTS) upload.removeEventListener(event, this);
    this.#uploads = this.#uploads.filter((each) => each !== upload);
    this.#results.delete(upload);
    if (upload.state === "completed") void this.uploader.forget(upload.key);
    else upload.cancel();
    this.#look();
  };

  /** The same array until something has changed. */
  views = () => this.#views;

  /** @param {() => void} listener @returns {() => void} ends it */
  subscribe = (listener) => {
    this.#listeners.add(listener);
    this.#look();
    return () => {
      this.#listeners.delete(listener);
      // A component that is gone does not end its uploads. A framework may take it away only to put it back at once.
      setTimeout(() => this.#closeIfDone());
    };
  };

  /** Of the DOM: something has happened to an upload. */
  handleEvent() {
    this.#timer ??= setTimeout(() => this.#look(), FRAME);
    if (!this.#listeners.size) this.#closeIfDone();
  }

  #look() {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#views = this.#uploads.map((upload) => {
      const { key, name, size, state, progress, error } = upload;
      return { upload, key, name, size, state, progress, error, result: this.#results.get(upload) ?? null };
    });
    for (const listener of this.#listeners) listener();
  }

  #closeIfDone() {
    const own = this.#source !== this.#uploader;
    if (!own || !this.#uploader || this.#listeners.size) return;
    if (!this.#uploads.every(({ state }) => OVER.has(state))) return;
    this.#uploader.close();
    this.#uploader = null;
  }
}
