/** Following uploads that this page does not send: WATCH on a connection of its own, opened again when it is lost. */
import { Backoff } from "./backoff.js";
import { Connection, errorOf } from "./connection.js";
import { browser } from "./environment.js";
import { UploadError } from "../protocol/errors.js";

/**
 * How far an upload is, as the server has it. `received` may be ahead of `durable`, which a crash of the server does not take back.
 *
 * @typedef {Omit<import( "../protocol/messages.js").Status, "type">} Standing
 */

/**
 * @typedef {object} WatcherOptions
 * @property {string} [url] `ws:`, `wss:`, or a path on the page's own host; default `/ws/uploads/`
 * @property {"uploads" | "own" | "all"} [scope] the uploads of `follow()` only, which is the default; also all of the user's; also
 *   all of the endpoint's, for staff
 */

/** States from which an upload does not go on. @type {ReadonlySet<string>} */
export const ENDED = new Set(["completed", "bound", "failed", "cancelled", "expired"]);
/** Uploads that one WATCH may name. */
const MOST = 1000;

/**
 * Follows uploads that this page does not send. It is connected while there is something to follow and the page is visible; after
 * that it is told again how all of them are.
 *
 * @fires changed `{standings, missing}`: the uploads that have changed, each as the fields of STATUS, at most four times a second; and the
 *   ids of those that do not exist, or that this user may not watch
 * @fires live `{live}`: the property `isLive` has changed
 */
export class Watcher extends EventTarget {
  #url;
  #scope;
  #environment;
  #backoff;
  /** How often each was asked for. @type {Map<string, number>} */
  #followed = new Map();
  /** Of a wider scope, those under way. @type {Set<string>} */
  #underWay = new Set();
  /** @type {Connection | null} */
  #connection = null;
  /** @type {import( "../protocol/stream.js").Stream | null} */
  #stream = null;
  /** Of that stream. @type {import( "./connection.js").StreamHolder | null} */
  #holder = null;
  #isStale = false;
  #isLive = false;
  /** The server refuses this page: it is asked again when the page becomes visible the next time. */
  #isRefused = false;
  #isClosed = false;
  /** @type {number | undefined} */
  #timer;
  #listening = new AbortController();

  /**
   * @param {WatcherOptions} [options]
   * @param {import( "./environment.js").Environment} [environment]
   */
  constructor({ url = "/ws/uploads/", scope = "uploads" } = {}, environment = browser()) {
    super();
    const address = new URL(url, environment.base);
    address.protocol = address.protocol.replace("http", "ws");
    this.#url = address.href;
    this.#scope = scope;
    this.#environment = environment;
    this.#backoff = new Backoff({ random: environment.random });
    const { signal } = this.#listening;
    environment.page.addEventListener("visibilitychange", () => this.#hurry(), { signal });
    environment.network.addEventListener("online", () => this.#hurry(), { signal });
    this.#attend();
  }

  /** Whether the server tells what changes: false while there is no connection. @returns {boolean} */
  get isLive() {
    return this.#isLive;
  }

  /**
   * Follow one more upload.
   * @param {string} upload its id
   * @returns {void}
   */
  follow(upload) {
    const times = this.#followed.get(upload) ?? 0;
    this.#followed.set(upload, times + 1);
    if (times === 0) this.#renew();
  }

  /**
   * Follow an upload no longer, unless `follow()` was called for it more often.
   * @param {string} upload its id
   * @returns {void}
   */
  leave(upload) {
    const times = this.#followed.get(upload) ?? 0;
    if (times > 1) {
      this.#followed.set(upload, times - 1);
    } else if (this.#followed.delete(upload)) {
      this.#renew();
    }
  }

  /** Stop. @returns {void} */
  close() {
    this.#isClosed = true;
    this.#listening.abort();
    this.#attend();
  }

  get #isWanted() {
    const isSeen = this.#environment.page.visibilityState !== "hidden";
    return !this.#isClosed && isSeen && (this.#scope !== "uploads" || this.#followed.size > 0);
  }

  #attend() {
    if (!this.#isWanted) {
      this.#stopTimer();
      this.#connection?.close();
      this.#gone();
    } else if (this.#connection === null && this.#timer === undefined && !this.#isRefused) {
      this.#connect();
    }
  }

  /** The network is back, or the page is seen or hidden. */
  #hurry() {
    this.#stopTimer();
    this.#isRefused = false;
    this.#attend();
    this.#connection?.probe();
  }

  #connect() {
    try {
      this.#connection = new Connection(this.#url, this.#environment, /** @type {any} */ (this));
    } catch {
      this.#isRefused = true; // not the address of a WebSocket
    }
  }

  /** Others are followed now: all that is asked for in the same moment is one WATCH. */
  #renew() {
    if (this.#isStale) return;
    this.#isStale = true;
    queueMicrotask(() => {
      this.#isStale = false;
      this.#attend();
      this.#watch();
    });
  }

  #watch() {
    const connection = this.#connection;
    if (connection === null || !connection.isUsable || !this.#isWanted) return;
    const uploads = [...this.#followed.keys(), ...this.#underWay].slice(0, MOST);
    /** @type {import( "./connection.js").StreamHolder} */
    const holder = {
      step: () => false,
      received: (message) => this.#received(message, holder),
      lost: () => {},
    };
    const stream = connection.open(holder, (protocol) => protocol.sendWatch(this.#scope, uploads));
    if (stream === null) return; // slotFreed() is called when there is room
    const before = this.#stream;
    this.#stream = stream;
    this.#holder = holder;
    if (before) connection.say((protocol) => protocol.sendRelease(before.id));
  }

  /**
   * @param {import( "../protocol/messages.js").Message} message
   * @param {import( "./connection.js").StreamHolder} holder
   */
  #received(message, holder) {
    if (message.type === "CHANGED") {
      this.#backoff.reset();
      this.#setLive(true);
      for (const { upload, state } of message.standings) {
        if (ENDED.has(state)) this.#underWay.delete(upload);
        else if (this.#scope !== "uploads") this.#underWay.add(upload);
      }
      for (const upload of message.missing) this.#underWay.delete(upload);
      const { standings, missing } = message;
      this.dispatchEvent(new CustomEvent("changed", { detail: { standings, missing } }));
    } else if (message.type === "ERROR" && holder === this.#holder) {
      this.#stream = null;
      this.#setLive(false);
      this.#retry(errorOf(message));
    }
  }

  /** @param {UploadError} error */
  #retry(error) {
    if (!error.retryable || error.needsLogin) {
      this.#isRefused = true;
      this.#connection?.close();
      this.#gone();
    } else {
      this.#stopTimer();
      this.#timer = this.#environment.setTimeout(
        () => {
          this.#timer = undefined;
          this.#attend();
          if (this.#stream === null) this.#watch();
        },
        this.#backoff.delay(error.retryAfter),
      );
    }
  }

  #gone() {
    this.#connection = this.#stream = null;
    this.#setLive(false);
  }

  #stopTimer() {
    if (this.#timer !== undefined) this.#environment.clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  /** @param {boolean} live */
  #setLive(live) {
    if (live !== this.#isLive) {
      this.#isLive = live;
      this.dispatchEvent(new CustomEvent("live", { detail: { live } }));
    }
  }

  // Called by connection.js, as a Line ---------------------------------------------------------------

  /** HELLO came. @internal */
  opened() {
    if (this.#connection?.hello.authenticated) this.#watch();
    else this.#retry(new UploadError("authentication_required"));
  }

  /** A stream was closed, or the server is busy no longer. @internal */
  slotFreed() {
    if (this.#stream === null && this.#timer === undefined) this.#watch();
  }

  /** A message on stream 0: the close that DRAIN announces is enough. @internal */
  heard() {}

  /**
   * The connection has ended.
   * @internal
   * @param {UploadError} error
   */
  lost(error) {
    const retryAfter = this.#connection?.retryAfter ?? error.retryAfter;
    this.#gone();
    this.#retry(new UploadError(error.code, { retryable: error.retryable, retryAfter }));
  }
}
