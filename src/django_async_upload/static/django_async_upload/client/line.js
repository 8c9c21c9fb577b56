/** The line to the server: one connection, opened again when it is lost, and its login. */
import { Backoff } from "./backoff.js";
import { Connection } from "./connection.js";
import { Reach } from "./reach.js";
import { UploadError } from "../protocol/errors.js";

/**
 * - `idle`: nothing to do
 * - `waiting`: for the network or a login; it goes on by itself
 * - `closed`: by the page, or because the server refuses it
 *
 * @typedef {"idle" | "connecting" | "open" | "waiting" | "closed"} LineState
 */

/** Milliseconds without anything to do after which the connection is closed. */
const IDLE = 30_000;
/** Of the time to a ticket's end, after which a new one is fetched. */
const RENEW_AFTER = 0.8;
/** Milliseconds at most until the server is asked again with the page's cookies, after `authenticate` has returned. */
const SIGNED_IN = 5_000;

export class Line {
  #url;
  #environment;
  #authenticate;
  #turns;
  #page;
  #reach;
  /** @type {Connection | null} */
  #connection = null;
  /** @type {LineState} */
  #state = "idle";
  #backoff;
  /** For the next connection. @type {string | undefined} */
  #ticket;
  /** The newest that was sent. @type {string | undefined} */
  #sent;
  /** It is not answered yet. */
  #isAsked = false;
  #isRenewing = false;
  #isClosed = false;
  /** @type {{retry?: number, renew?: number, idle?: number}} */
  #timers = {};
  /** @type {Set<string>} */
  #warned = new Set();
  #listening = new AbortController();

  /**
   * @param {string} url `ws:` or `wss:`
   * @param {((error?: UploadError) => Promise<string | undefined>) | undefined} authenticate
   * @param {import( "./turns.js").Turns} turns
   * @param {EventTarget} page gets `connection`, `unreachable` and `warning`
   */
  constructor(url, authenticate, turns, page) {
    const { environment } = turns;
    this.#url = url;
    this.#authenticate = authenticate;
    this.#environment = environment;
    this.#turns = turns;
    this.#page = page;
    this.#reach = new Reach(url, environment, () => this.#setUnreachable(true));
    this.#backoff = new Backoff({ random: environment.random });
    const { signal } = this.#listening;
    const hurry = () => this.#hurry();
    const online = () => {
      this.#reach.forget(); // failures without a network do not count
      hurry();
    };
    environment.network.addEventListener("online", online, { signal });
    environment.page.addEventListener(
      "visibilitychange",
      () => environment.page.visibilityState === "visible" && hurry(),
      { signal },
    );
  }

  get state() {
    return this.#state;
  }

  /** HTTP gets through, and no WebSocket does. It goes on trying. */
  get isUnreachable() {
    return this.#reach.isLost;
  }

  /** On which uploads may begin; null while there is none. */
  get connection() {
    return this.#state === "open" && this.#connection?.isUsable ? this.#connection : null;
  }

  /** Uploads have come or gone: connect, or close after a while. */
  attend() {
    if (this.#isClosed) {
      return;
    }
    if (this.#isWanted) {
      this.#stop("idle");
      this.#connect();
    } else if (this.#timers.retry !== undefined) {
      this.#reach.forget();
      this.#disconnect();
      this.#setState("idle");
    } else if (this.#connection !== null) {
      // After a while, let the server have its connection back.
      this.#timers.idle ??= this.#environment.setTimeout(() => {
        this.#disconnect();
        this.#setState("idle");
      }, IDLE);
    }
  }

  /** What was given up as unreachable is tried, even where nothing waits for it. */
  get #isWanted() {
    return this.#turns.hasWork || this.#reach.isLost;
  }

  /** `received` of an upload has risen: the next failure is the first. */
  progressed() {
    this.#backoff.reset();
  }

  /**
   * The server wants a fresh login: by a ticket, or by a new handshake with the page's cookies.
   *
   * @param {UploadError} error
   */
  async renew(error) {
    if (this.#isAsked) {
      this.#go(); // it is the answer to an older ticket: what begins now waits for that to the newer one
      return;
    }
    await this.#renew(error, this.#sent);
  }

  /**
   * @param {UploadError} error
   * @param {string} [refused] a ticket that is not sent again
   */
  async #renew(error, refused) {
    if (this.#isRenewing || this.#isClosed) {
      return;
    }
    this.#isRenewing = true;
    this.#setState("waiting", { error });
    this.#turns.wait("login", error);
    const ticket = await this.#fetchTicket(error);
    this.#isRenewing = false;
    if (this.#isClosed) {
      return;
    }
    if (ticket !== undefined && ticket === refused) {
      this.#giveUp(error); // the same ticket gets the same answer
      return;
    }
    if (ticket !== undefined && this.#connection?.isUsable) {
      this.#send(this.#connection, ticket);
      this.#go();
      return;
    }
    this.#ticket = ticket;
    const connection = this.#connection;
    this.#connection = null;
    this.#isAsked = false;
    connection?.leave(error);
    const delay = this.#backoff.delay(error.retryAfter);
    this.#retry(error, this.#authenticate ? Math.min(delay, SIGNED_IN) : delay);
  }

  close() {
    this.#isClosed = true;
    this.#reach.forget();
    this.#listening.abort();
    this.#disconnect();
    this.#setState("closed");
  }

  // -----------------------------------------------------------------------------------------------

  #connect() {
    if (this.#connection !== null || this.#timers.retry !== undefined || this.#isRenewing) {
      return;
    }
    this.#setState("connecting");
    try {
      this.#connection = new Connection(this.#url, this.#environment, this);
    } catch (error) {
      // Not a WebSocket address, or ws: on a page of https:.
      const { message } = /** @type {Error} */ (error);
      this.#warn("unreachable", `${this.#url} cannot be opened: ${message}`);
      this.#reach.isLost = true;
      this.#setUnreachable(true);
      this.#giveUp(new UploadError("connection_refused", { message, cause: error }));
    }
  }

  // Called by connection.js ------------------------------------------------------------------------

  /** HELLO came. */
  opened() {
    const connection = /** @type {Connection} */ (this.#connection);
    if (this.#reach.found()) {
      this.#setUnreachable(false);
    }
    if (connection.extensions.includes("permessage-deflate")) {
      this.#warn(
        "deflate",
        "The server negotiated permessage-deflate, which makes uploads many times slower. Switch it off: " +
          "uvicorn has --ws-per-message-deflate false.",
      );
    }
    if (this.#ticket !== undefined) {
      this.#send(connection, this.#ticket);
      this.#ticket = undefined;
    } else if (!connection.hello.authenticated) {
      this.#renew(new UploadError("authentication_required"));
      return;
    }
    this.#go();
  }

  #go() {
    this.#setState("open");
    this.#turns.opened();
  }

  /** A stream was closed, or the server is busy no longer. */
  slotFreed() {
    this.#turns.soon();
  }

  /** A message on stream 0. @param {import( "../protocol/messages.js").Message} message */
  heard(message) {
    if (message.type === "AUTHENTICATED") {
      this.#isAsked = false;
      this.#stop("renew");
      if (message.expires_in !== undefined && this.#authenticate) {
        const delay = Math.max(1000, message.expires_in * 1000 * RENEW_AFTER);
        this.#timers.renew = this.#environment.setTimeout(() => this.#refresh(), delay);
      }
    }
  }

  /** The connection has ended, and every holder of a stream was told. @param {UploadError} error */
  lost(error) {
    const retryAfter = this.#connection?.retryAfter ?? error.retryAfter;
    this.#connection = null;
    this.#isAsked = false;
    this.#stop("renew");
    if (error.code === "connection_lost" && this.#isWanted) {
      this.#reach.missed();
    }
    if (error.needsLogin) {
      this.#renew(error, this.#sent);
    } else if (!error.retryable) {
      this.#giveUp(error);
    } else if (!this.#isWanted) {
      this.#reach.forget();
      this.#setState("idle");
    } else if (!this.#isRenewing) {
      this.#retry(error, this.#backoff.delay(retryAfter));
    }
  }

  /**
   * @param {UploadError} error
   * @param {number} delay ms
   */
  #retry(error, delay) {
    this.#stop("retry");
    this.#timers.retry = this.#environment.setTimeout(() => {
      this.#timers.retry = undefined;
      this.#connect();
    }, delay);
    this.#setState("waiting", { retryIn: delay / 1000, error });
    this.#turns.wait(error.needsLogin ? "login" : "offline", error);
  }

  /** The network is back, or the page has become visible: waiting longer gains nothing. */
  #hurry() {
    if (this.#timers.retry !== undefined) {
      this.#stop("retry");
      this.#backoff.reset();
      this.#connect();
    } else {
      this.#connection?.probe();
    }
  }

  /**
   * The server refuses this page.
   *
   * @param {UploadError} error
   */
  #giveUp(error) {
    this.#disconnect();
    this.#setState("closed", { error });
    this.#turns.giveUp(error);
  }

  #disconnect() {
    for (const name of /** @type {const} */ (["retry", "renew", "idle"])) {
      this.#stop(name);
    }
    this.#connection?.close();
    this.#connection = null;
    this.#isAsked = false;
  }

  /** A ticket is about to expire. */
  async #refresh() {
    this.#timers.renew = undefined;
    const ticket = await this.#fetchTicket();
    if (ticket !== undefined && this.#connection?.isUsable && !this.#isRenewing && !this.#isAsked) {
      this.#send(this.#connection, ticket);
    }
  }

  /**
   * @param {Connection} connection
   * @param {string} ticket
   */
  #send(connection, ticket) {
    this.#sent = ticket;
    this.#isAsked = true;
    connection.authenticate(ticket);
  }

  /** @param {UploadError} [error] */
  async #fetchTicket(error) {
    try {
      return await this.#authenticate?.(error);
    } catch (cause) {
      console.error("authenticate of an Uploader failed.", cause);
      return undefined;
    }
  }

  /** @param {"retry" | "renew" | "idle"} name */
  #stop(name) {
    const timer = this.#timers[name];
    if (timer !== undefined) {
      this.#environment.clearTimeout(timer);
      this.#timers[name] = undefined;
    }
  }

  /**
   * @param {LineState} state
   * @param {{retryIn?: number, error?: UploadError}} [detail]
   */
  #setState(state, detail = {}) {
    if (state !== this.#state || detail.error) {
      this.#state = state;
      this.#dispatch("connection", { state, ...detail });
    }
  }

  /**
   * @param {"deflate" | "unreachable"} code
   * @param {string} message
   */
  #warn(code, message) {
    if (!this.#warned.has(code)) {
      this.#warned.add(code);
      console.warn(`django-resumable-upload: ${message}`);
      this.#dispatch("warning", { code, message });
    }
  }

  /** @param {boolean} unreachable */
  #setUnreachable(unreachable) {
    if (unreachable) {
      this.#warn(
        "unreachable",
        `No WebSocket to ${this.#url} could be opened. The page may be served without an ASGI server, the path may have no upload ` +
          "endpoint, its Origin may not be trusted, or a proxy on the way may not pass WebSockets on.",
      );
    }
    this.#dispatch("unreachable", { unreachable });
  }

  /**
   * @param {string} type
   * @param {unknown} detail
   */
  #dispatch(type, detail) {
    this.#page.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
