/** Many uploads on one line to the server: who has a turn, and what earlier pages left. */
import { browser } from "./environment.js";
import { Lane } from "./lane.js";
import { Line } from "./line.js";
import { UploadError } from "../protocol/errors.js";
import { Reader } from "../file/reader.js";
import { inSlices } from "./slices.js";
import { claim, claimed } from "./tabs.js";
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
 *   wants a login, with its error, and shortly before a ticket expires, without one. undefined: look at the cookie again
 * @property {boolean} [persist] remember unfinished uploads, so that a later page can go on with them; default true
 */

/**
 * An upload that an earlier page, or one in another tab that is gone, did not finish.
 *
 * @typedef {object} Unfinished
 * @property {string} key the upload's, as before
 * @property {string} name of the file
 * @property {number} size bytes
 * @property {number} sent bytes that the server has for sure
 * @property {string} field the token of the form's field that it belongs to; `""` without one
 * @property {number} lastModified milliseconds since 1970
 * @property {boolean} canContinue without the file being picked again
 * @property {() => Promise<Upload>} continue call it in a click, since the browser may ask for permission. Where it cannot,
 *   `add` the file again: it is recognised by its content
 * @property {() => Promise<void>} discard throw it away, here and on the server
 */

/** Bytes: what fits is pipelined with others. */
const WINDOW = 8 * 1024 * 1024;

/**
 * Uploads any number of files over one WebSocket, which it opens when there is something to do and opens again when it is lost.
 *
 * @fires upload `{upload}`: one was added, or goes on from an earlier page
 * @fires connection `{state, retryIn, error}`: `connection` has changed. Where it waits, `retryIn` are the seconds until
 *   it tries again, and `error` says why
 * @fires warning `{code, message}`: something that a developer should know, said in the console, too. `deflate`: the server
 *   compresses what is sent, which costs most of the speed. `unreachable`: no WebSocket gets through
 */
export class Uploader extends EventTarget {
  #options;
  #environment;
  #reader = new Reader();
  /** @type {Upload[]} */
  #uploads = [];
  /** Files up to a window: as many as have their bytes within one. */
  #small = new Lane(WINDOW, (upload) => upload.size);
  #large;
  /** Have a turn and all they need but a stream. @type {Set<Upload>} */
  #prepared = new Set();
  /** Server ids of uploads to be thrown away. @type {Set<string>} */
  #abandoned = new Set();
  #line;
  /** What uploads that join the waiting wait for. */
  #waits = /** @type {{state: "offline" | "unauthenticated", error: UploadError} | null} */ (null);
  #isClosed = false;
  #isScheduled = false;
  #host;

  /**
   * @param {UploaderOptions} options
   * @param {import( "./environment.js").Environment} [environment] for tests
   */
  constructor({ url, field, parallel = 3, authenticate, persist = true }, environment = browser()) {
    super();
    const address = new URL(url, environment.base);
    address.protocol = address.protocol.replace("http", "ws");
    this.#options = { url: address.href, field };
    this.#large = new Lane(parallel, () => 1);
    this.#environment = environment;
    /** @type {import( "./upload.js").Host} */
    this.#host = {
      url: address.href,
      persist,
      environment,
      reader: this.#reader,
      enqueue: (upload) => this.#enqueue(upload),
      dequeue: (upload) => this.#lanes.forEach((lane) => lane.dequeue(upload)),
      sent: (upload) => this.#shareTurn(upload),
      left: (upload) => this.#left(upload),
      progressed: () => this.#line.progressed(),
      renew: (error) => this.#line.renew(error),
      abandon: (id) => this.#abandon(id),
      recall: (upload, fingerprint) => this.#recall(upload, fingerprint),
    };
    this.#line = new Line(address.href, authenticate, environment, {
      hasWork: () => this.#hasWork,
      opened: () => this.#opened(),
      slotFreed: () => this.#soon(),
      waits: (state, error) => this.#wait(state, error),
      failed: (error) => void inSlices([...this.#waiting()], (upload) => upload.giveUp(error)),
      changed: (state, detail) => this.#dispatch("connection", { state, ...detail }),
      warned: (code, message) => {
        console.warn(`django-resumable-upload: ${message}`);
        this.#dispatch("warning", { code, message });
      },
    });
  }

  /**
   * Upload a file. It begins at once, or when its turn comes.
   *
   * @param {File | Blob | FileSystemFileHandle} what a handle lets a later page go on without the file being picked again
   * @param {UploadOptions} [options]
   * @returns {Upload}
   */
  add(what, options = {}) {
    return this.#start(new Upload(this.#host, what, { field: this.#options.field, ...options }));
  }

  /** All that were added, in this order. @returns {readonly Upload[]} */
  get uploads() {
    return this.#uploads;
  }

  /**
   * `idle`: nothing to do. `waiting`: for the network or a login, it goes on by itself. `closed`: by `close`, or because the
   * server does not talk with this page; a further upload tries again.
   *
   * @returns {"idle" | "connecting" | "open" | "waiting" | "closed"}
   */
  get connection() {
    return this.#line.state;
  }

  /**
   * What earlier pages did not finish at this address, newest first, but for what another tab is at.
   *
   * @returns {Promise<Unfinished[]>}
   */
  async unfinished() {
    const records = await this.#environment.records.all(this.#options.url);
    const taken = await this.#taken();
    return records.filter(({ key }) => !taken.has(key)).map((record) => this.#offer(record));
  }

  /** Stop. What is not finished stays on the server, for a later page. @returns {void} */
  close() {
    if (this.#isClosed) {
      return;
    }
    this.#isClosed = true;
    this.#uploads.forEach((upload) => upload.close());
    this.#line.close();
    this.#reader.close();
    this.#environment.records.close();
  }

  // Turns -----------------------------------------------------------------------------------------

  get #lanes() {
    return [this.#large, this.#small];
  }

  get #hasWork() {
    return !this.#large.isEmpty || !this.#small.isEmpty || this.#abandoned.size > 0;
  }

  /** @param {Upload} upload */
  #start(upload) {
    if (this.#isClosed) {
      throw new TypeError("The uploader is closed.");
    }
    this.#uploads.push(upload);
    this.#enqueue(upload);
    this.#dispatch("upload", { upload });
    return upload;
  }

  /** @param {Upload} upload */
  #enqueue(upload) {
    if (upload.file === null) {
      void upload.load().then((isWaiting) => isWaiting && this.#join(upload));
    } else {
      this.#join(upload);
    }
  }

  /** @param {Upload} upload */
  #join(upload) {
    (upload.size > WINDOW ? this.#large : this.#small).enqueue(upload);
    if (this.#waits !== null) {
      upload.wait(this.#waits.state, this.#waits.error);
    }
    this.#soon();
  }

  /** @param {Upload} upload */
  #shareTurn(upload) {
    this.#lanes.forEach((lane) => lane.share(upload));
    this.#soon();
  }

  /** @param {Upload} upload */
  #left(upload) {
    this.#lanes.forEach((lane) => lane.leave(upload));
    this.#prepared.delete(upload);
    this.#soon();
  }

  /** Give turns when this task is over: thousands of files are added in one. */
  #soon() {
    if (!this.#isScheduled) {
      this.#isScheduled = true;
      queueMicrotask(() => {
        this.#isScheduled = false;
        this.#giveTurns();
      });
    }
  }

  #giveTurns() {
    if (this.#isClosed) {
      return;
    }
    this.#line.attend();
    const { connection } = this.#line;
    if (connection !== null) {
      this.#abandonAll(connection);
      void inSlices(this.#turns(connection.hello.max_streams), (upload) => void this.#prepare(upload));
      this.#attach();
    }
  }

  /**
   * Those whose turn it is now.
   *
   * @param {number} streams that the server allows
   */
  *#turns(streams) {
    for (const lane of this.#lanes) {
      // A stream for each who has a turn; what is left for the small ones is at least one.
      while (lane.turns < streams - (lane === this.#large ? 1 : this.#large.turns)) {
        const upload = lane.take();
        if (upload === null) {
          break;
        }
        yield upload;
      }
    }
  }

  /** @param {Upload} upload */
  async #prepare(upload) {
    if (await upload.prepare()) {
      this.#prepared.add(upload);
      this.#attach();
    }
  }

  /** Give streams to those who are prepared, as far as there are any. */
  #attach() {
    const { connection } = this.#line;
    void inSlices(this.#prepared, (upload) => {
      if (connection === null || connection !== this.#line.connection || !upload.attach(connection)) {
        return false;
      }
      return this.#prepared.delete(upload);
    });
  }

  #opened() {
    this.#waits = null;
    this.#giveTurns();
    this.#tellWaiting("queued", null);
  }

  /**
   * @param {"offline" | "unauthenticated"} state
   * @param {UploadError} error
   */
  #wait(state, error) {
    this.#waits = { state, error };
    this.#tellWaiting(state, error);
  }

  /**
   * @param {"offline" | "unauthenticated" | "queued"} state
   * @param {UploadError | null} error
   */
  #tellWaiting(state, error) {
    const waits = this.#waits;
    void inSlices(this.#waiting(), (upload) => {
      upload.wait(state, error);
      return this.#waits === waits;
    });
  }

  *#waiting() {
    for (const lane of this.#lanes) {
      yield* lane.waiting();
    }
    yield* this.#prepared;
  }

  // Uploads of earlier pages, and those that nobody wants -------------------------------------------

  /** Keys of uploads that this or another tab is at. */
  async #taken() {
    const taken = await claimed();
    for (const { key, isOver } of this.#uploads) {
      if (!isOver) {
        taken.add(key);
      }
    }
    return taken;
  }

  /**
   * @param {UploadRecord} record
   * @returns {Unfinished}
   */
  #offer(record) {
    const { key, name, size, durable = 0, field = "", lastModified, handle } = record;
    return {
      ...{ key, name, size, sent: durable, field, lastModified, canContinue: handle !== undefined },
      continue: async () => {
        if (handle === undefined || !(await mayRead(handle))) {
          throw new UploadError("file_unreadable", { message: "The file has to be chosen again." });
        }
        const unclaim = await claim(key);
        if (unclaim === null) {
          throw new UploadError("taken_over", { message: "Another tab goes on with this upload." });
        }
        return this.#start(new Upload(this.#host, handle, {}, { record, unclaim }));
      },
      discard: async () => {
        await this.#environment.records.delete(key);
        if (record.upload) {
          this.#abandon(record.upload);
        }
      },
    };
  }

  /**
   * @param {Upload} upload
   * @param {string} fingerprint
   * @returns {Promise<import( "./upload.js").Claim | null>}
   */
  async #recall(upload, fingerprint) {
    const { digest, metadata } = upload.create;
    const file = /** @type {File} */ (upload.file);
    const records = await this.#environment.records.find(this.#options.url, file, fingerprint);
    const taken = await this.#taken();
    for (const record of records) {
      const isSame =
        (record.digest || undefined) === digest &&
        JSON.stringify(record.metadata ?? {}) === JSON.stringify(metadata);
      const unclaim = isSame && !taken.has(record.key) ? await claim(record.key) : null;
      if (unclaim !== null) {
        return { record, unclaim };
      }
    }
    return null;
  }

  /** @param {string} id */
  #abandon(id) {
    if (!this.#isClosed) {
      this.#abandoned.add(id);
      this.#soon();
    }
  }

  /** @param {import( "./connection.js").Connection} connection */
  #abandonAll(connection) {
    for (const id of this.#abandoned) {
      const holder = {
        step: () => false,
        received: () => {},
        lost: () => this.#abandon(id),
      };
      if (connection.open(holder, (protocol) => protocol.sendCancelOf(id)) === null) {
        return;
      }
      this.#abandoned.delete(id);
    }
  }

  /**
   * @param {string} type
   * @param {unknown} detail
   */
  #dispatch(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
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
