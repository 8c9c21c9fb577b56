/** One upload as the page sees it: a handle that lives through lost connections, pauses and reloads. */
import { Attachment } from "./attachment.js";
import { Backoff } from "./backoff.js";
import { Cancellation } from "./cancellation.js";
import { Content, IN_MEMORY, unreadable } from "./content.js";
import { canGoOn, eventOf, isKept, isOver, next, shown, wantsTurn } from "./life.js";
import { Memo } from "./memo.js";
import { Meter } from "./meter.js";
import { UploadError } from "../protocol/errors.js";

/** @typedef {import( "./records.js").UploadRecord} UploadRecord */
/** @typedef {import( "./shelf.js").Claim} Claim */
/** @typedef {import( "./meter.js").Progress} Progress */
/** @typedef {import( "./life.js").UploadState} UploadState */
/** @typedef {import( "./life.js").LifeEvent} LifeEvent */

/**
 * @typedef {object} Result
 * @property {string} id the server's
 * @property {string} name as the server cleaned it
 * @property {number} size bytes
 * @property {string} crc32c of the whole file, 8 hex digits; compared with the client's
 * @property {string} storedAs the name in the server's storage
 * @property {Record<string, string>} digests algorithm -> hex
 * @property {string} [receipt] signed proof of this upload, to be posted with a form
 * @property {Record<string, unknown>} [response] the app's own answer, where its endpoint gave one
 */

/**
 * @typedef {object} UploadOptions
 * @property {string} [name] 1 to 1,024 characters; default: the file's
 * @property {Record<string, unknown>} [metadata] JSON values, for the server's hooks
 * @property {"sha-256"} [digest] send a SHA-256 too, which the server checks
 * @property {string} [field] the token of a form's field; default: the uploader's
 * @property {boolean} [remember] so that a later page can go on with it, or post its receipt; default: the uploader's
 * @property {string} [owner] an opaque tag of the owner; default: the uploader's
 * @property {unknown} [place] JSON, opaque: where in the site it belongs; `remembered` gives it back
 * @property {number} [receiptMaxAge] seconds for which a finished upload is remembered; default a day
 */

/** Milliseconds between `progress` events, and between notes of `durable`. */
const PROGRESS_EVERY = 100;
const NOTE_EVERY = 2000;

/**
 * One file on its way to the server, made by {@link import( "./uploader.js").Uploader.add}. Its properties say how it stands; its
 * events, whose `detail` is given here, say what changed.
 *
 * @fires progress a `Progress`: at most ten times a second, at least once a second while it is uploaded, and with each new state
 * @fires state `{state, previous}`: it is in another state now
 * @fires completed `{result}`: the server has verified and published the file
 * @fires error `{error}`: it has failed; not where it was cancelled
 */
export class Upload extends EventTarget {
  #turns;
  #options;
  #content;
  #phase = /** @type {import( "./life.js").Phase} */ ("queued");
  #memo;
  /** The record of an earlier page, which it resumes. @type {UploadRecord | null} */
  #adopted = null;
  #meter = new Meter();
  /** The record was found by the fingerprint of the file: where the server says that the file is another one, it begins anew. */
  #isGuess = false;
  /** An earlier page began it, and it has no stream in this page yet. */
  #isFromBefore = false;
  /** Made when it is first read, as the outcome is. */
  #key = "";
  /** The fields of its first CREATE, which the server may know since. @type {ReturnType<Upload["facts"]> | null} */
  #told = null;
  /** @type {string | undefined} */
  #id;
  /** @type {Promise<void> | null} */
  #preparing = null;
  /** @type {Attachment | null} */
  #attachment = null;
  #reportedAt = -Infinity;
  #notedAt = -Infinity;
  /** When it got its first stream, ms. @type {number | null} */
  #begunAt = null;
  /** @type {UploadError | null} */
  #error = null;
  #backoff;
  /** When something was gained last, or it began; ms. */
  #gainedAt = 0;
  /** @type {number | null} */
  #timer = null;
  /** @type {number | null} */
  #retryAt = null;
  /** @type {ReturnType<typeof deferred> | null} */
  #deferred = null;

  /**
   * @param {import( "./turns.js").Turns} turns
   * @param {import( "./shelf.js").Shelf} shelf
   * @param {File | Blob | FileSystemFileHandle | null} what null: the server has it
   * @param {UploadOptions} options
   * @param {Claim} [claim] on the record of an earlier page, which it resumes
   */
  constructor(turns, shelf, what, options, claim) {
    super();
    this.#turns = turns;
    this.#options = options;
    this.#memo = new Memo(shelf, this, options.remember !== false);
    this.#backoff = new Backoff({ random: turns.environment.random });
    this.#gainedAt = turns.environment.now();
    this.#content = new Content(turns.reader, what);
    if (claim) {
      this.adopt(claim, false);
    }
  }

  /** Random, 32 hex digits; the same after a reload. @returns {string} */
  get key() {
    return (this.#key ||= newKey());
  }

  /** The server's id; undefined until it has answered. @returns {string | undefined} */
  get id() {
    return this.#id;
  }

  /** What is uploaded; null until a file handle was opened, and where an earlier page uploaded it. @returns {File | Blob | null} */
  get file() {
    return this.#content.file;
  }

  /** Of the file, or as it was given. @returns {string} */
  get name() {
    const { name } = this.#adopted ?? this.#options;
    return name ?? (this.file instanceof File ? this.file.name : this.#content.handle?.name) ?? "blob";
  }

  /** Bytes. @returns {number} */
  get size() {
    return this.file?.size ?? this.#adopted?.size ?? 0;
  }

  /** As the browser declares it, `""` where it names none. @returns {string} */
  get type() {
    return this.file?.type ?? this.#adopted?.type ?? "";
  }

  /** Where it stands. @returns {UploadState} */
  get state() {
    return shown(this.#phase);
  }

  /** What it waits for or failed with; null while all is well. @returns {UploadError | null} */
  get error() {
    return this.#error;
  }

  /** When it is tried again, milliseconds since 1970; null unless it is `waiting`. @returns {number | null} */
  get retryAt() {
    return this.#retryAt;
  }

  /** How far it is and how fast. @returns {Progress} */
  get progress() {
    return this.#meter.read(this.size, this.state, this.#now());
  }

  /** Completed, failed or cancelled. @returns {boolean} */
  get isOver() {
    return isOver(this.#phase);
  }

  /** The token of the form's field that it belongs to; `""` without one. @returns {string} */
  get field() {
    return this.#memo.record?.field ?? this.#adopted?.field ?? this.#options.field ?? "";
  }

  /**
   * Rejects with the {@link UploadError} that ended it; it need not be handled. After `retry` there is another one.
   *
   * @returns {Promise<Result>}
   */
  get result() {
    return this.#outcome.promise;
  }

  /** Made when it is first read, or the upload is over: thousands of files may be added in one task. */
  get #outcome() {
    return (this.#deferred ??= deferred());
  }

  /** Stop until {@link resume}. An upload of which the server has all bytes cannot be paused. @returns {void} */
  pause() {
    const isHeld = this.#phase === "uploading" && this.#attachment?.release() === false;
    this.#go(isHeld ? "hold" : "pause");
  }

  /** Go on with a paused upload. @returns {void} */
  resume() {
    this.#gainedAt = this.#now();
    this.#go("resume");
  }

  /** Cancel the upload, here and on the server. @returns {void} */
  cancel() {
    if (next(this.#phase, "cancel") === this.#phase) {
      return;
    }
    const isGone = this.#phase === "failed" && this.#error !== null && !isKept(this.#error);
    if (this.#told !== null && !isGone) {
      const cancellation = new Cancellation(this.#turns, this.#told, this.#id);
      if (!this.#attachment?.cancel(cancellation)) {
        this.#turns.abandon(cancellation);
      }
    }
    this.#attachment = null;
    this.#memo.forget();
    this.#settle("cancel", new UploadError("upload_over", { facts: { state: "cancelled" } }));
  }

  /** Delete the finished file on the server, unless an object, an API or a receiver has taken it. @returns {void} */
  discard() {
    if (this.#phase === "completed" && this.#told !== null && this.#id !== undefined) {
      this.#turns.abandon(new Cancellation(this.#turns, this.#told, this.#id, true));
      this.#memo.forget();
    }
  }

  /** Try a failed, cancelled or waiting upload again at once; what the server still has is not sent again. @returns {void} */
  retry() {
    if (next(this.#phase, "retry") === this.#phase) {
      return;
    }
    if (this.isOver) {
      if (!canGoOn(this.#error)) {
        this.#beginAnew();
      }
      this.#deferred = null;
    }
    this.#content.lookAgain();
    this.#backoff.reset();
    this.#gainedAt = this.#now();
    this.#go("retry");
  }

  /**
   * Stop it in this page, as `failed`. It stays on the server and remembered, for another page or element.
   *
   * @returns {void}
   */
  leave() {
    if (next(this.#phase, "leave") === this.#phase) {
      return;
    }
    this.#attachment?.leave();
    this.#attachment = null;
    this.#settle("leave", new UploadError("connection_lost", { message: "The page has left this upload." }));
  }

  // Called by turns.js ----------------------------------------------------------------------------------

  /**
   * Look at what is behind the handle.
   *
   * @returns {Promise<boolean>} false: it cannot be read now
   * @internal
   */
  async load() {
    try {
      await this.#content.load();
    } catch (error) {
      this.#failed(unreadable(error));
    }
    return this.isWaiting;
  }

  /**
   * Get ready for a stream: look for what an earlier page began with the file, remember it, read what is small.
   *
   * @returns {Promise<boolean>} false: the upload wants no stream any longer
   * @internal
   */
  async prepare() {
    const { source, file } = this.#content;
    if (source === null && file !== null) {
      this.#preparing ??= this.#prepare(file);
      await this.#preparing;
      this.#preparing = null;
    }
    return this.isWaiting;
  }

  /**
   * Take a stream of the connection.
   *
   * @param {import( "./connection.js").Connection} connection
   * @returns {boolean} false: no stream is free
   * @internal
   */
  attach(connection) {
    const { source } = this.#content;
    if (!this.isWaiting || this.#attachment !== null || source === null) {
      return true; // it wants none any longer
    }
    const isFresh = this.#told === null;
    const facts = this.facts();
    try {
      const attachment = Attachment.open(connection, source, this, isFresh);
      if (attachment === null) {
        return false;
      }
      this.#attachment = attachment;
    } catch (error) {
      const { message } = /** @type {Error} */ (error);
      this.#fail(new UploadError("metadata_invalid", { message, facts: { reason: message } }));
      return true;
    }
    this.#told ??= facts;
    this.#begunAt ??= this.#now();
    this.#go("start");
    this.#attachment?.wake(); // unless a listener has cancelled it
    return true;
  }

  /**
   * The line is lost, wants a login, or is open again.
   *
   * @param {"offline" | "login" | "online"} event
   * @param {UploadError | null} error
   * @internal
   */
  wait(event, error) {
    if (this.isWaiting) {
      this.#error = error;
      this.#go(event, error);
    }
  }

  /**
   * The line was given up.
   *
   * @param {UploadError} error
   * @internal
   */
  giveUp(error) {
    this.#fail(error);
  }

  /**
   * A second has passed, in which perhaps nothing has arrived.
   *
   * @internal
   */
  tick() {
    const now = this.#now();
    this.#meter.tick(now);
    if (this.#phase === "uploading" && now - this.#reportedAt >= PROGRESS_EVERY) {
      this.#report();
    }
  }

  /**
   * The fields of CREATE: for one key always the same.
   *
   * @internal
   */
  get create() {
    return this.#told ?? this.facts();
  }

  /** The same, before the first CREATE was sent. @internal */
  facts() {
    const kept = this.#memo.record ?? this.#adopted;
    const { metadata = {}, digest } = kept ?? this.#options;
    return {
      key: this.key,
      name: this.name,
      size: this.size,
      content_type: kept ? kept.type : this.type.slice(0, 255),
      digest: digest || undefined,
      metadata: kept || this.field === "" ? metadata : { ...metadata, field: this.field },
    };
  }

  /** It wants a turn, or has one and waits for a stream. @internal */
  get isWaiting() {
    return wantsTurn(this.#phase);
  }

  /** The opaque tag of the owner; `""` without one. @internal */
  get owner() {
    return this.#memo.record?.owner ?? this.#options.owner ?? "";
  }

  /** The server may know it: it goes on before others begin. @internal */
  get hasBegun() {
    return this.#told !== null;
  }

  // Called by memo.js ------------------------------------------------------------------------------

  /**
   * @param {Blob} file
   * @returns {UploadRecord}
   * @internal
   */
  record(file) {
    const { key, name, size, content_type: type, metadata, digest } = this.create;
    const { lastModified, webkitRelativePath: path } = file instanceof File ? file : new File([], "");
    const { field, owner } = this;
    const { receiptMaxAge } = this.#options;
    return {
      ...{ key, url: this.#turns.url, owner, name, size, type, lastModified, path, field, metadata, digest },
      ...{ upload: this.#id, durable: 0, receiptMaxAge },
    };
  }

  /** What a record gets from this page, also where an earlier page began it. @internal */
  get belongs() {
    const { place } = this.#options;
    const { handle } = this.#content;
    return { ...(place === undefined ? {} : { place }), ...(handle === undefined ? {} : { handle }) };
  }

  /**
   * @param {Claim} claim
   * @param {boolean} isGuess the claim was found by the fingerprint of the file
   * @internal
   */
  adopt(claim, isGuess) {
    const { record } = claim;
    this.#memo.adopt(claim);
    this.#adopted = record;
    this.#isGuess = isGuess;
    this.#key = record.key;
    this.#id = record.upload;
    this.#meter.set(record.durable ?? 0);
    if (record.result === undefined) {
      this.#isFromBefore = true;
      this.#told = this.facts();
    } else {
      // An earlier page completed it: no event tells of that here.
      this.#phase = "completed";
      this.#outcome.resolve(record.result);
    }
  }

  // Called by attachment.js ------------------------------------------------------------------------

  /**
   * What CREATE promised.
   *
   * @internal
   */
  async digests() {
    const digest = this.create.digest === undefined ? null : await this.#content.digest();
    return digest === null ? undefined : { "sha-256": digest };
  }

  /**
   * The server named the upload.
   *
   * @param {string} id
   * @internal
   */
  identified(id) {
    if (this.#id !== id) {
      this.#id = id;
      this.#memo.note({ upload: id });
    }
  }

  /**
   * The server said where to begin, or to begin again.
   *
   * @param {import( "./attachment.js").Place} place
   * @internal
   */
  placed(place) {
    this.#isFromBefore = false;
    if (this.#phase === "holding" && this.#attachment?.release()) {
      this.#go("pause");
    }
    this.#go("rewound");
    this.#meter.start(place, this.#now());
    this.#report();
  }

  /**
   * `received` or `durable` has risen.
   *
   * @param {import( "./attachment.js").Place} place
   * @param {boolean} isFinal FINISH was sent
   * @internal
   */
  moved(place, isFinal) {
    const now = this.#now();
    if (this.#meter.move(place, now)) {
      this.#gained(now);
    }
    void this.#memo.grow(now - (this.#begunAt ?? now));
    if (place.durable > 0 && now - this.#notedAt >= NOTE_EVERY) {
      this.#notedAt = now;
      this.#memo.note({ durable: place.durable });
    }
    if (isFinal && place.received === this.size) {
      this.#go("arrived");
    }
    if (now - this.#reportedAt >= PROGRESS_EVERY) {
      this.#report();
    }
  }

  /**
   * All was sent: others may use what its turn takes.
   *
   * @internal
   */
  sent() {
    if (this.size > IN_MEMORY) {
      this.#turns.share(this);
    }
  }

  /**
   * What the server does after it has all bytes.
   *
   * @param {string} phase
   * @internal
   */
  checked(phase) {
    this.#gained(this.#now());
    this.#meter.phase = phase;
    this.#meter.set(this.size);
    this.#go("arrived");
    this.#report();
  }

  /**
   * @param {import( "../protocol/messages.js").Completed} completed
   *
   * @internal
   */
  async completed(completed) {
    const { upload: id, name, size, crc32c, stored_as: storedAs, digests, receipt, response } = completed;
    this.#attachment = null;
    this.#gained(this.#now());
    this.#go("arrived");
    this.#turns.leave(this);
    const { key } = this;
    /** @type {UploadError | null} */
    let error = null;
    try {
      // Asked again, a server answers with the result at once: it has to be that of this very file.
      const crc = await this.#content.crc(size);
      await this.#memo.grow(this.#now() - (this.#begunAt ?? this.#now()));
      if (crc !== crc32c) {
        error = new UploadError(this.#isGuess ? "file_changed" : "digest_mismatch");
      }
    } catch (cause) {
      error = unreadable(cause);
    }
    if (this.isOver || key !== this.key) {
      return; // cancelled meanwhile
    }
    if (error !== null) {
      this.#failed(error);
      return;
    }
    this.#meter.set(size);
    const result = { id, name, size, crc32c, storedAs, digests, receipt, response };
    this.#memo.finish(result);
    this.#settle("complete", result);
  }

  /**
   * The stream was given back; the upload stays.
   *
   * @internal
   */
  released() {
    this.#attachment = null;
    this.#go("released");
  }

  /**
   * The stream, the connection or the file is lost.
   *
   * @param {UploadError} error
   * @internal
   */
  interrupted(error) {
    this.#attachment = null;
    this.#failed(error);
  }

  // -----------------------------------------------------------------------------------------------

  #now() {
    return this.#turns.environment.now();
  }

  /** @param {number} now */
  #gained(now) {
    this.#gainedAt = now;
    this.#backoff.reset();
    this.#turns.progressed();
  }

  /** It cannot go on as it is. @param {UploadError} error */
  #failed(error) {
    const isFromBefore = this.#isFromBefore;
    const event = eventOf(error, { isGuess: this.#isGuess, isFromBefore, stuck: this.#now() - this.#gainedAt });
    if (event === "fail") {
      this.#fail(error);
      return;
    }
    if (event === "anew") {
      if (error.code === "file_changed") {
        this.#memo.disown(); // the unfinished one stays for the right file
      } else {
        this.#memo.forget();
      }
      this.#beginAnew();
    }
    if (error.code === "file_unreadable") {
      this.#content.lookAgain();
    }
    this.#go(event, event === "anew" ? null : error);
    if (event === "login" && this.#phase === "unauthenticated") {
      this.#turns.renew(error);
    }
  }

  /** @param {UploadError} error */
  #fail(error) {
    if (next(this.#phase, "fail") === this.#phase) {
      return; // it is paused: what is wrong is found again when it goes on
    }
    if (!isKept(error)) {
      this.#memo.forget();
    }
    this.#settle("fail", error);
  }

  /**
   * Something happened; do what follows from the phase that it leads to.
   *
   * @param {LifeEvent} event
   * @param {UploadError | null} [error] what it waits for
   */
  #go(event, error = null) {
    const [from, to] = [this.#phase, next(this.#phase, event)];
    if (from === to && !(event === "anew" && wantsTurn(to))) {
      return;
    }
    this.#phase = to;
    this.#stopWaiting();
    this.#error = error;
    if (to !== "uploading" && to !== "holding") {
      this.#meter.stop();
    }
    if (to !== "finishing") {
      this.#meter.phase = undefined;
    }
    // An upload that sends or finishes has a turn, and one that waited before is in a lane.
    if (wantsTurn(to) && !(wantsTurn(from) && event !== "anew")) {
      this.#turns.leave(this);
      this.#turns.enqueue(this);
    } else if (!wantsTurn(to) && to !== "uploading" && to !== "finishing" && to !== "holding") {
      this.#turns.dequeue(this);
      this.#turns.leave(this);
    }
    if (to === "waiting") {
      const delay = this.#backoff.delay(error?.retryAfter);
      this.#retryAt = Date.now() + delay;
      this.#timer = this.#turns.environment.setTimeout(() => this.#go("due"), delay);
    }
    if (shown(from) !== shown(to)) {
      this.#dispatch("state", { state: shown(to), previous: shown(from) });
      this.#report();
    }
  }

  #stopWaiting() {
    this.#retryAt = null;
    if (this.#timer !== null) {
      this.#turns.environment.clearTimeout(this.#timer);
      this.#timer = null;
    }
  }

  /**
   * It is over, one way or another.
   *
   * @param {"complete" | "fail" | "cancel" | "leave"} event
   * @param {Result | UploadError} outcome
   */
  #settle(event, outcome) {
    this.#content.close();
    if (event !== "complete") {
      this.#memo.release(); // a finished one stays this page's, until its receipt was sent
    }
    this.#go(event, outcome instanceof UploadError ? outcome : null);
    this.#turns.over(this);
    if (outcome instanceof UploadError) {
      this.#outcome.reject(outcome);
      if (this.#phase === "failed") {
        this.#dispatch("error", { error: outcome });
      }
    } else {
      this.#outcome.resolve(outcome);
      this.#dispatch("completed", { result: outcome });
    }
  }

  /** @param {Blob} file */
  async #prepare(file) {
    try {
      if (this.#told !== null && this.#told.size !== file.size) {
        throw new UploadError("file_changed", { facts: { offset: file.size } });
      }
      await this.#memo.begin(file);
      if (this.isWaiting) {
        await this.#content.open(file, this.create.digest, () => this.#attachment?.wake());
      }
    } catch (error) {
      this.#failed(unreadable(error));
    }
  }

  /** Another key: for the server it is another upload. */
  #beginAnew() {
    this.#memo.leave();
    this.#adopted = this.#told = this.#begunAt = null;
    this.#isGuess = this.#isFromBefore = false;
    this.#key = "";
    this.#id = undefined;
    this.#meter.set(0);
    this.#content.close();
  }

  // Telling the page ------------------------------------------------------------------------------

  #report() {
    this.#reportedAt = this.#now();
    this.#dispatch("progress", this.progress);
  }

  /**
   * @param {string} type
   * @param {unknown} detail
   */
  #dispatch(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

/** 128 random bits. */
function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** A promise whose rejection need not be handled. */
function deferred() {
  /** @type {(result: Result) => void} */
  let resolve = () => {};
  /** @type {(error: UploadError) => void} */
  let reject = () => {};
  const promise = /** @type {Promise<Result>} */ (
    new Promise((yes, no) => {
      resolve = yes;
      reject = no;
    })
  );
  promise.catch(() => {});
  return { promise, resolve, reject };
}
