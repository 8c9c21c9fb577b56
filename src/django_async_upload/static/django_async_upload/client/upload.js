/** One upload as the page sees it: a handle that lives through lost connections, pauses and reloads. */
import { Attachment } from "./attachment.js";
import { Backoff } from "./backoff.js";
import { Memo } from "./memo.js";
import { Meter } from "./meter.js";
import { UploadError } from "../protocol/errors.js";
import { toHex } from "../protocol/frames.js";
import { fingerprint } from "../file/source.js";

/** @typedef {import( "./records.js").UploadRecord} UploadRecord */

/** @typedef {import( "./memo.js").Claim} Claim */
/** @typedef {import( "./meter.js").Progress} Progress */

/**
 * - `queued`: waits for its turn
 * - `offline`: waits for the network, and goes on by itself
 * - `unauthenticated`: waits for a login or a ticket, and goes on by itself
 * - `finishing`: all was sent; the server verifies and publishes
 *
 * @typedef {"queued" | "uploading" | "paused" | "offline" | "unauthenticated" | "finishing" | "completed" | "failed"
 *   | "cancelled"} UploadState
 */

/**
 * @typedef {object} Result
 * @property {string} id the server's
 * @property {string} name as the server cleaned it
 * @property {number} size bytes
 * @property {string} crc32c of the whole file, 8 hex digits; compared with our own
 * @property {string} storedAs the name in the server's storage
 * @property {Record<string, string>} digests algorithm -> hex
 * @property {string} [receipt] signed proof of this upload, to be posted with a form
 */

/**
 * @typedef {object} UploadOptions
 * @property {string} [name] 1 to 1,024 characters; default: the file's
 * @property {Record<string, unknown>} [metadata] JSON values, for the server's hooks
 * @property {"sha-256"} [digest] send a SHA-256 too, which the server checks
 * @property {string} [field] the token of a form's field; default: the uploader's
 * @property {boolean} [remember] so that a later page can go on with it, or post its receipt; default: the uploader's
 * @property {string} [owner] who uploads, opaque: to others it is never shown; default: the uploader's
 * @property {unknown} [place] JSON, opaque: where in the site it belongs; `remembered` gives it back
 * @property {number} [receiptMaxAge] seconds for which a finished upload is remembered; default a day
 */

/**
 * What an upload needs of its uploader.
 *
 * @typedef {object} Host
 * @property {string} url
 * @property {Map<string, Memo>} memos what this page remembers and is at, by key
 * @property {import( "./environment.js").Environment} environment
 * @property {import( "../file/reader.js").Reader} reader
 * @property {(upload: Upload) => void} enqueue it wants a turn
 * @property {(upload: Upload) => void} dequeue it wants none any longer
 * @property {(upload: Upload) => void} sent all was sent: others may use what its turn takes
 * @property {(upload: Upload) => void} left its turn is over
 * @property {() => void} progressed the server took something
 * @property {(error: UploadError) => void} renew the server wants a fresh login
 * @property {(id: string) => void} abandon tell the server to throw an upload away
 * @property {(upload: Upload, fingerprint: string) => Promise<Claim | null>} recall what an earlier page began with this file
 */

/** Files up to here are read as a whole before their turn begins, so that they can go out in one breath. */
export const IN_MEMORY = 64 * 1024;
/** Bytes, and milliseconds since it began: what is smaller and was quicker is as soon sent again as remembered. */
const REMEMBERED = 1024 * 1024;
const REMEMBERED_AFTER = 5_000;
/** Milliseconds between `progress` events, and between notes of `durable`. */
const PROGRESS_EVERY = 100;
const NOTE_EVERY = 2000;
/** Milliseconds without any progress in which errors of the server other than a lost connection are tried again. */
const PATIENCE = 5 * 60 * 1000;

/** Failures after which the upload is still there, for this or another file, tab or time. */
const KEPT = new Set(["file_changed", "file_unreadable", "taken_over"]);

const OVER = new Set(["completed", "failed", "cancelled"]);

/**
 * One file on its way to the server, made by {@link import( "./uploader.js").Uploader.add}. Its properties say how it stands; its
 * events, whose `detail` is given here, say what changed.
 *
 * @fires progress a `Progress`: at most ten times a second, and with each new state
 * @fires state `{state, previous}`: it is in another state now
 * @fires completed `{result}`: the server has verified and published the file
 * @fires error `{error}`: it has failed; not where it was cancelled
 */
export class Upload extends EventTarget {
  #host;
  #options;
  /** @type {File | Blob | null} */
  #file = null;
  #handle;
  /** @type {UploadState} */
  #state = "queued";
  #memo;
  /** What it goes on with. @type {UploadRecord | null} */
  #adopted = null;
  #meter = new Meter();
  /** Recognised without being asked: if it turns out to be another file, it begins anew. */
  #isGuess = false;
  /** What an earlier page began, and the server has not gone on with yet. */
  #isFromBefore = false;
  /** It was not that file: others are not guessed either. */
  #wasWrong = false;
  /** Made when somebody asks, as the outcome is. */
  #key = "";
  /** The server may know the key. */
  #isKnown = false;
  /** @type {Promise<void> | null} */
  #remembering = null;
  /** When it got its first stream, ms. @type {number | null} */
  #begunAt = null;
  /** @type {string | undefined} */
  #id;
  /** @type {import( "../file/source.js").Source | null} */
  #source = null;
  /** @type {Promise<string> | null} */
  #digest = null;
  /** @type {Promise<void> | null} */
  #preparing = null;
  /** @type {Attachment | null} */
  #attachment = null;
  #reportedAt = -Infinity;
  #notedAt = -Infinity;
  /** @type {UploadError | null} */
  #error = null;
  #backoff;
  /** When something was gained last, or it began; ms. */
  #gainedAt = 0;
  /** @type {number | null} */
  #timer = null;
  /** @type {ReturnType<typeof deferred> | null} */
  #deferred = null;

  /**
   * @param {Host} host
   * @param {File | Blob | FileSystemFileHandle} what
   * @param {UploadOptions} options
   * @param {Claim} [unfinished] what it goes on with
   */
  constructor(host, what, options, unfinished) {
    super();
    this.#host = host;
    this.#options = options;
    this.#memo = new Memo(host.environment, host.memos);
    this.#backoff = new Backoff({ random: host.environment.random });
    this.#gainedAt = host.environment.now();
    if (what instanceof Blob) {
      this.#file = what;
    } else {
      this.#handle = what;
    }
    if (unfinished) {
      this.#adopt(unfinished);
    }
  }

  /**
   * A finished upload of an earlier page, as this page gets it back: it was `completed` before anybody could listen.
   *
   * @param {Host} host
   * @param {Claim} finished
   * @internal
   */
  static finished(host, finished) {
    const { name, type, lastModified, result } = finished.record;
    const upload = new Upload(host, new File([], name, { type, lastModified }), {}, finished);
    upload.#file = null;
    upload.#state = "completed";
    upload.#meter.set(finished.record.size);
    upload.#outcome.resolve(/** @type {Result} */ (result));
    return upload;
  }

  /** Random, 32 hex digits; the same after a reload. @returns {string} */
  get key() {
    return (this.#key ||= newKey());
  }

  /** The server's id; undefined until it has answered. @returns {string | undefined} */
  get id() {
    return this.#id;
  }

  /** What is uploaded; null until a file handle was opened. @returns {File | Blob | null} */
  get file() {
    return this.#file;
  }

  /** Of the file, or as it was given. @returns {string} */
  get name() {
    const { name } = this.#adopted ?? this.#options;
    return name ?? (this.#file instanceof File ? this.#file.name : this.#handle?.name) ?? "blob";
  }

  /** Bytes. @returns {number} */
  get size() {
    return this.#file?.size ?? this.#adopted?.size ?? 0;
  }

  /** As the browser declares it, `""` where it has no idea. @returns {string} */
  get type() {
    return this.#file?.type ?? this.#adopted?.type ?? "";
  }

  /** Where it stands. @returns {UploadState} */
  get state() {
    return this.#state;
  }

  /** What it waits for or failed with; null while all is well. @returns {UploadError | null} */
  get error() {
    return this.#error;
  }

  /** How far it is and how fast. @returns {Progress} */
  get progress() {
    return this.#meter.read(this.size, this.#state, this.#host.environment.now());
  }

  /**
   * Rejects with the {@link UploadError} that ended it; nobody has to listen. After `retry` there is another one.
   *
   * @returns {Promise<Result>}
   */
  get result() {
    return this.#outcome.promise;
  }

  /** Made when somebody asks, or it is over: thousands of files may be added in one task. */
  get #outcome() {
    return (this.#deferred ??= deferred());
  }

  /** Stop until {@link resume}. What was sent to the last byte cannot be paused. @returns {void} */
  pause() {
    if (OVER.has(this.#state) || this.#state === "paused" || this.#state === "finishing") {
      return;
    }
    if (this.#attachment?.release() === false) {
      return;
    }
    this.#stopWaiting();
    this.#leave();
    this.#setState("paused");
  }

  /** Go on with a paused upload. @returns {void} */
  resume() {
    if (this.#state === "paused") {
      this.#gainedAt = this.#host.environment.now();
      this.#queue();
    }
  }

  /** Throw the upload away, here and on the server. @returns {void} */
  cancel() {
    if (OVER.has(this.#state) && this.#state !== "failed") {
      return;
    }
    const attachment = this.#attachment;
    this.#attachment = null;
    if (!attachment?.cancel() && this.#id !== undefined && this.#isKnown) {
      this.#host.abandon(this.#id);
    }
    this.#memo.forget();
    this.#settle("cancelled", new UploadError("upload_over", { facts: { state: "cancelled" } }));
  }

  /** Try a failed or cancelled upload again; what the server still has is not sent again. @returns {void} */
  retry() {
    if (this.#state !== "failed" && this.#state !== "cancelled") {
      return;
    }
    const canGoOn =
      this.#state === "failed" &&
      (this.#error?.retryable || this.#error?.code === "taken_over" || this.#error?.code === "file_unreadable");
    if (!canGoOn) {
      this.#beginAnew();
    }
    if (this.#handle) {
      this.#file = null; // what is behind the handle may have changed
      this.#closeSource();
    }
    this.#deferred = null;
    this.#backoff.reset();
    this.#gainedAt = this.#host.environment.now();
    this.#queue();
  }

  // What the uploader says ------------------------------------------------------------------------

  /**
   * Look at what is behind the handle.
   *
   * @returns {Promise<boolean>} false: it cannot be read, and the upload has failed
   * @internal
   */
  async load() {
    try {
      this.#file ??= (await this.#handle?.getFile()) ?? null;
    } catch (error) {
      this.#cannotRead(error);
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
    if (this.#source === null && this.#file !== null) {
      this.#preparing ??= this.#prepare(this.#file);
      await this.#preparing;
      this.#preparing = null;
    }
    return this.isWaiting;
  }

  /**
   * Take a stream of the connection.
   *
   * @param {import( "./connection.js").Connection} connection
   * @returns {boolean} false: it has none to give, or the upload wants none any longer
   * @internal
   */
  attach(connection) {
    if (!this.isWaiting || this.#attachment !== null || this.#source === null) {
      return true; // an older stream is being released: its end brings us back
    }
    let attachment;
    try {
      attachment = Attachment.open(
        connection,
        this.#source,
        this.create,
        this.#attached(),
        !this.#isKnown,
      );
      if (attachment === null) {
        return false;
      }
      this.#attachment = attachment;
    } catch (error) {
      const { message } = /** @type {Error} */ (error);
      this.#fail(new UploadError("metadata_invalid", { message, facts: { reason: message } }));
      return true;
    }
    this.#isKnown = true;
    this.#begunAt ??= this.#host.environment.now();
    this.#error = null;
    this.#setState("uploading");
    if (this.#attachment === attachment) attachment.wake(); // else a listener has cancelled or paused it
    return true;
  }

  /**
   * It has to wait, with others, for the network or a login.
   *
   * @param {"offline" | "unauthenticated" | "queued"} state
   * @param {UploadError | null} error
   * @internal
   */
  wait(state, error) {
    if (this.isWaiting && this.#timer === null) {
      this.#error = error;
      this.#setState(state);
    }
  }

  /**
   * The connection cannot be had any longer.
   *
   * @param {UploadError} error
   * @internal
   */
  giveUp(error) {
    if (!OVER.has(this.#state) && this.#state !== "paused") {
      this.#fail(error);
    }
  }

  /**
   * The page needs no uploader any longer: the upload stays on the server.
   *
   * @internal
   */
  close() {
    if (!OVER.has(this.#state)) {
      this.#attachment?.release();
      this.#attachment = null;
      this.#settle("failed", new UploadError("connection_lost", { message: "The uploader was closed." }));
    }
  }

  // -----------------------------------------------------------------------------------------------

  /**
   * The fields of CREATE: for one key always the same.
   *
   * @internal
   */
  get create() {
    const kept = this.#memo.record;
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
    return this.#state === "queued" || this.#state === "offline" || this.#state === "unauthenticated";
  }

  /** Completed, failed or cancelled. @returns {boolean} */
  get isOver() {
    return OVER.has(this.#state);
  }

  /** The token of the form's field that it belongs to; `""` without one. @returns {string} */
  get field() {
    return this.#memo.record?.field ?? this.#options.field ?? "";
  }

  /** Who began it; `""` for nobody in particular. @internal */
  get owner() {
    return this.#memo.record?.owner ?? this.#options.owner ?? "";
  }

  /** The server may know it: it goes on before others begin. @internal */
  get hasBegun() {
    return this.#isKnown;
  }

  /** @returns {import( "./attachment.js").Attached} */
  #attached() {
    const { key } = this;
    /** @type {(run: () => void) => void} */
    const ours = (run) => {
      if (this.key === key && !OVER.has(this.#state)) {
        run();
      }
    };
    return {
      digests: () => this.#digests(),
      identified: (id) => ours(() => this.#identified(id)),
      placed: (place) => ours(() => this.#placed(place)),
      moved: (place) => ours(() => this.#moved(place)),
      finishing: () => ours(() => this.#finishing()),
      checked: (phase) => ours(() => this.#checked(phase)),
      completed: (completed) => {
        this.#attachment = null;
        ours(() => this.#completed(completed));
      },
      released: () => {
        this.#attachment = null;
        ours(() => this.#state !== "paused" && this.#queue());
      },
      failed: (error) => {
        this.#attachment = null;
        ours(() => this.#interrupted(error));
      },
    };
  }

  /** @param {string} id */
  #identified(id) {
    if (this.#id !== id) {
      this.#id = id;
      this.#memo.note({ upload: id });
    }
  }

  /** @param {import( "./attachment.js").Place} place */
  #placed(place) {
    this.#isFromBefore = false;
    this.#meter.start(place, this.#host.environment.now());
    this.#report();
  }

  /** @param {import( "./attachment.js").Place} place */
  #moved(place) {
    const now = this.#host.environment.now();
    if (this.#meter.move(place, now)) {
      this.#gained(now);
    }
    this.#rememberLate(now);
    if (place.durable > 0 && now - this.#notedAt >= NOTE_EVERY) {
      this.#notedAt = now;
      this.#memo.note({ durable: place.durable });
    }
    if (now - this.#reportedAt >= PROGRESS_EVERY) {
      this.#report();
    }
  }

  /** @param {number} now */
  #gained(now) {
    this.#gainedAt = now;
    this.#backoff.reset();
    this.#host.progressed();
  }

  #finishing() {
    if (this.#state === "uploading") {
      if (this.size > IN_MEMORY) {
        this.#host.sent(this);
      }
      this.#setState("finishing");
    }
  }

  /** @param {string} phase */
  #checked(phase) {
    this.#gained(this.#host.environment.now());
    this.#meter.phase = phase;
    this.#meter.set(this.size);
    this.#finishing();
    this.#report();
  }

  /** @param {import( "../protocol/messages.js").Completed} completed */
  async #completed(completed) {
    const { upload: id, name, size, crc32c, stored_as: storedAs, digests, receipt } = completed;
    this.#gained(this.#host.environment.now());
    this.#finishing();
    this.#leave();
    const { key } = this;
    try {
      // Asked again, a server answers with the result at once: it has to be that of this very file.
      const crc = this.#source && size === this.size ? toHex(await this.#source.crcAt(size)) : "";
      this.#rememberLate(this.#host.environment.now());
      await this.#remembering;
      if (OVER.has(this.#state) || key !== this.key) {
        return;
      }
      if (crc !== crc32c) {
        this.#interrupted(new UploadError(this.#isGuess ? "file_changed" : "digest_mismatch"));
        return;
      }
    } catch (error) {
      this.#fail(new UploadError("file_unreadable", { cause: error }));
      return;
    }
    this.#meter.set(size);
    this.#error = null;
    const result = { id, name, size, crc32c, storedAs, digests, receipt };
    this.#memo.finish(result);
    this.#settle("completed", result);
  }

  /**
   * The stream has ended before the upload.
   *
   * @param {UploadError} error
   */
  #interrupted(error) {
    if (this.#state === "paused") {
      return;
    }
    if (error.code === "file_changed" && this.#isGuess) {
      // Another file with the same head and tail: the unfinished one stays for the right file.
      this.#wasWrong = true;
      this.#beginAnew();
      this.#queue();
    } else if (error.code === "upload_over" && this.#isFromBefore) {
      this.#memo.forget(); // it has expired, and the file is still here
      this.#beginAnew();
      this.#queue();
    } else if (error.needsLogin) {
      this.#queue("unauthenticated", error);
      this.#host.renew(error);
    } else if (error.code === "connection_lost" || error.code === "draining") {
      this.#queue("offline", error);
    } else if (error.retryable && this.#host.environment.now() - this.#gainedAt < PATIENCE) {
      this.#leave();
      this.#error = error;
      this.#setState("queued");
      this.#timer = this.#host.environment.setTimeout(
        () => {
          this.#timer = null;
          this.#queue("queued", error);
        },
        this.#backoff.delay(error.retryAfter),
      );
    } else {
      this.#fail(error);
    }
  }

  /**
   * Ask for a turn.
   *
   * @param {"queued" | "offline" | "unauthenticated"} [state]
   * @param {UploadError | null} [error]
   */
  #queue(state = "queued", error = null) {
    this.#stopWaiting();
    this.#host.left(this);
    this.#error = error;
    this.#meter.phase = undefined;
    this.#setState(state);
    this.#host.enqueue(this);
  }

  /** @param {unknown} error */
  #cannotRead(error) {
    this.#fail(error instanceof UploadError ? error : new UploadError("file_unreadable", { cause: error }));
  }

  /** Give the turn up. */
  #leave() {
    this.#host.dequeue(this);
    this.#host.left(this);
  }

  #stopWaiting() {
    if (this.#timer !== null) {
      this.#host.environment.clearTimeout(this.#timer);
      this.#timer = null;
    }
  }

  /** @param {UploadError} error */
  #fail(error) {
    if (!error.retryable && !KEPT.has(error.code)) {
      this.#memo.forget();
    }
    this.#settle("failed", error);
  }

  /**
   * It is over, one way or another.
   *
   * @param {"completed" | "failed" | "cancelled"} state
   * @param {Result | UploadError} outcome
   */
  #settle(state, outcome) {
    this.#stopWaiting();
    this.#leave();
    this.#closeSource();
    if (state !== "completed") {
      this.#memo.release(); // a finished one stays this page's, until its receipt was sent
    }
    this.#meter.phase = undefined;
    this.#error = outcome instanceof UploadError ? outcome : null;
    this.#setState(state);
    if (outcome instanceof UploadError) {
      this.#outcome.reject(outcome);
      if (state === "failed") {
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
      if (this.#memo.record !== null && this.#memo.record.size !== file.size) {
        throw new UploadError("file_changed", { facts: { offset: file.size } });
      }
      if (file.size >= REMEMBERED && this.#options.remember !== false) {
        await (this.#remembering = this.#remember(file));
      }
      if (this.isWaiting) {
        await this.#open(file);
      }
    } catch (error) {
      this.#cannotRead(error);
    }
  }

  /**
   * Open the file, and read it where it is so small that it goes out in one breath.
   *
   * @param {Blob} file
   */
  async #open(file) {
    const { digest } = this.create;
    await new Promise((resolve) => {
      const source = this.#host.reader.open(file, {
        wake: () => {
          resolve(undefined);
          this.#attachment?.wake();
        },
        digest,
      });
      this.#source = source;
      if (file.size === 0 || file.size > IN_MEMORY) {
        resolve(undefined);
      } else {
        source.take(0); // begins to read
      }
    });
    if (this.#source?.error) {
      throw this.#source.error;
    }
  }

  /** What CREATE promised: computed once, however often FINISH is sent. */
  async #digests() {
    const source = this.#source;
    if (this.create.digest === undefined || source === null) {
      return undefined;
    }
    this.#digest ??= source.digest();
    return { "sha-256": await this.#digest };
  }

  #closeSource() {
    this.#digest = null;
    this.#source?.close();
    this.#source = null;
  }

  /** Another key: for the server it is another upload. */
  #beginAnew() {
    this.#memo.leave();
    this.#adopted = null;
    this.#isGuess = this.#isFromBefore = false;
    this.#remembering = null;
    this.#key = "";
    this.#isKnown = false;
    this.#id = undefined;
    this.#meter.set(0);
    this.#closeSource();
  }

  // Surviving a reload ----------------------------------------------------------------------------

  /**
   * Find what an earlier page began with this file, or note that it begins; on the disk before the server hears of it.
   *
   * @param {Blob} file
   */
  async #remember(file) {
    const mark = this.#memo.record?.fingerprint || (await fingerprint(file));
    if (this.isOver) {
      return;
    }
    if (this.#memo.record === null && !this.#isKnown && !this.#wasWrong) {
      const found = await this.#host.recall(this, mark);
      if (found !== null) {
        this.#isGuess = true;
        this.#adopt(found);
      }
    }
    const { key, name, size, content_type: type, metadata, digest } = this.create;
    const { lastModified, webkitRelativePath: path } = file instanceof File ? file : new File([], "");
    const { field } = this;
    const { owner } = this;
    const { place, receiptMaxAge } = this.#options;
    await this.#memo.keep({
      ...{ key, url: this.#host.url, owner, place, receiptMaxAge, name, size, type, lastModified, path, field, metadata, digest },
      ...{ fingerprint: mark, upload: this.#id, durable: 0, handle: this.#handle },
    });
  }

  /**
   * What turns out to take long is remembered, too.
   *
   * @param {number} now ms
   */
  #rememberLate(now) {
    const isSlow = this.#begunAt !== null && now - this.#begunAt > REMEMBERED_AFTER;
    if (isSlow && this.#remembering === null && this.#options.remember !== false && this.#file !== null) {
      // It has begun, and goes on without.
      this.#remembering = this.#remember(this.#file).catch(() => undefined);
    }
  }

  /** @param {Claim} claim */
  #adopt(claim) {
    const { key, upload, durable = 0 } = (this.#adopted = claim.record);
    this.#memo.adopt(claim);
    this.#key = key;
    this.#id = upload;
    this.#isKnown = this.#isFromBefore = true;
    this.#meter.set(durable);
  }

  // Telling the page ------------------------------------------------------------------------------

  /** @param {UploadState} state */
  #setState(state) {
    const previous = this.#state;
    if (state === previous) {
      return;
    }
    this.#state = state;
    if (state !== "uploading") {
      this.#meter.stop();
    }
    this.#dispatch("state", { state, previous });
    this.#report();
  }

  #report() {
    this.#reportedAt = this.#host.environment.now();
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

/** A promise whose rejection nobody has to handle. */
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
