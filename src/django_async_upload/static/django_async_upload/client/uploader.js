/** Many uploads on one line to the server: who has a turn, and what earlier pages left. */
import { browser } from "./environment.js";
import { Lane } from "./lane.js";
import { Line } from "./line.js";
import { UploadError } from "../protocol/errors.js";
import { Reader } from "../file/reader.js";
import { inSlices } from "./slices.js";
import { claim, claimed } from "./tabs.js";
import { Upload } from "./upload.js";
import { within } from "./within.js";

/** @typedef {import( "./records.js").UploadRecord} UploadRecord */
/** @typedef {import( "./upload.js").UploadOptions} UploadOptions */

/**
 * @typedef {object} UploaderOptions
 * @property {string} url `ws:`, `wss:`, or a path on the page's own host
 * @property {string} [field] the token of a form's field, for every upload that brings none of its own
 * @property {number} [parallel] uploads under way that are larger than a window; default 3. Smaller ones share the rest of
 *   the server's streams
 * @property {(error?: UploadError) => Promise<string | undefined>} [authenticate] a fresh ticket; called when the server
 *   wants a login, with its error, and shortly before a ticket expires, without one. undefined: look at the cookie again.
 *   The ticket that was refused: give up
 * @property {boolean} [remember] so that a later page can go on with an upload, or post its receipt; default true
 * @property {string} [owner] who uploads, opaque: to others it is never shown
 */

/**
 * An upload that an earlier page, or one in another tab that is gone, did not finish, or finished without its receipt being sent.
 *
 * @typedef {object} Remembered
 * @property {string} key the upload's, as before
 * @property {string} name of the file
 * @property {string} type of the file, `""` where the browser had no idea
 * @property {number} size bytes
 * @property {number} sent bytes that the server has for sure
 * @property {string} field the token of the form's field that it belongs to; `""` without one
 * @property {unknown} place what `add` got
 * @property {number} lastModified milliseconds since 1970
 * @property {boolean} isFinished the server has all of it, and `continue` gives it back `completed`, with its receipt
 * @property {boolean} canContinue without the file being picked again
 * @property {() => Promise<Upload>} continue call it in a click, since the browser may ask for permission. Where it cannot,
 *   `add` the file again: it is recognised by its content
 * @property {() => Promise<void>} discard throw it away, here and, where it is not finished, on the server
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
  #url;
  /** @type {Partial<UploaderOptions>} */
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
  /** What this page remembers and is at, by key. @type {Map<string, import( "./memo.js").Memo>} */
  #memos = new Map();
  #isClosed = false;
  #isScheduled = false;
  #host;

  /**
   * @param {UploaderOptions} options
   * @param {import( "./environment.js").Environment} [environment] for tests
   */
  constructor({ url, field, parallel = 3, authenticate, remember, owner }, environment = browser()) {
    super();
    const address = new URL(url, environment.base);
    address.protocol = address.protocol.replace("http", "ws");
    this.#url = address.href;
    this.#options = { field, remember, owner };
    this.#large = new Lane(parallel, () => 1);
    this.#environment = environment;
    /** @type {import( "./upload.js").Host} */
    this.#host = {
      url: address.href,
      memos: this.#memos,
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
    return this.#start(new Upload(this.#host, what, { ...this.#options, ...options }));
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
   * What earlier pages left at this address, newest first: what is not finished, and what is, but its receipt was not sent. What
   * another tab or this page is at is left out.
   *
   * @param {string} [owner] whose; default: the uploader's
   * @returns {Promise<Remembered[]>}
   */
  async remembered(owner = this.#options.owner ?? "") {
    const records = await this.#records();
    const taken = await this.#taken();
    const own = records.filter((record) => (record.owner ?? "") === owner && !taken.has(record.key));
    return own.map((record) => this.#offer(record));
  }

  /**
   * Its receipt was sent, or nobody will want it: no later page is offered this upload. On the server nothing changes.
   *
   * @param {string} key
   * @returns {Promise<void>} when it is gone from the disk
   */
  async forget(key) {
    this.#memos.get(key)?.forget();
    await within(this.#environment, this.#environment.records.delete(key), false);
  }

  /**
   * Somebody else sits here, or has signed out: what others began at this address is remembered no longer.
   *
   * @param {string} [owner] whose stays; default: the uploader's
   * @returns {Promise<void>} when the rest is gone from the disk
   */
  async forgetOthers(owner = this.#options.owner ?? "") {
    const records = await this.#records();
    const others = records.filter((record) => (record.owner ?? "") !== owner);
    await Promise.all(others.map(({ key }) => this.forget(key)));
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

  async #records() {
    const { records } = this.#environment;
    return within(this.#environment, records.all(this.#url), /** @type {UploadRecord[]} */ ([]));
  }

  /** Keys of uploads that this or another tab is at. */
  async #taken() {
    const taken = await within(this.#environment, claimed(), new Set());
    return new Set([...taken, ...this.#memos.keys()]);
  }

  /**
   * @param {UploadRecord} record
   * @returns {Promise<import( "./upload.js").Claim>}
   * @throws {UploadError} `taken_over`
   */
  async #claim(record) {
    const nobody = () => undefined;
    const unclaim = await within(this.#environment, claim(record.key), nobody, (late) => late?.());
    if (unclaim === null || this.#memos.has(record.key)) {
      throw new UploadError("taken_over", { message: "Another tab goes on with this upload." });
    }
    return { record, unclaim };
  }

  /**
   * @param {UploadRecord} record
   * @returns {Remembered}
   */
  #offer(record) {
    const { key, name, size, type, durable: sent = 0, field = "", place, lastModified, handle } = record;
    const isFinished = record.result !== undefined;
    return {
      ...{ key, name, size, type, sent, field, place, lastModified, isFinished },
      canContinue: isFinished || handle !== undefined,
      continue: async () => {
        if (isFinished) {
          return Upload.finished(this.#host, await this.#claim(record));
        }
        if (handle === undefined || !(await mayRead(handle))) {
          throw new UploadError("file_unreadable", { message: "The file has to be chosen again." });
        }
        return this.#start(new Upload(this.#host, handle, {}, await this.#claim(record)));
      },
      discard: async () => {
        await this.forget(key);
        if (record.upload && !isFinished) {
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
    const taken = await this.#taken();
    for (const record of await this.#records()) {
      const isSame =
        record.result === undefined &&
        record.fingerprint === fingerprint &&
        (record.owner ?? "") === upload.owner &&
        (record.digest || undefined) === digest &&
        JSON.stringify(record.metadata ?? {}) === JSON.stringify(metadata);
      if (isSame && !taken.has(record.key)) {
        try {
          return await this.#claim(record);
        } catch {
          continue; // another tab was faster
        }
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
