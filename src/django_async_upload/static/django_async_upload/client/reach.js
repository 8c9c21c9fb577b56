/**
 * Whether any WebSocket gets through to the server at all. That none does is said late, and only where HTTP was seen to work
 * beside it: a restart, a lift or a tunnel is no reason to give up what can be resumed.
 */

/** Milliseconds of failures before it is asked, and until it is asked again. */
const PATIENCE = 30_000;

export class Reach {
  #url;
  #environment;
  #onlost;
  /** Once reached, it can be reached: what comes later is an interruption. */
  #wasReached = false;
  /** @type {number | null} */
  #timer = null;
  /** HTTP gets through, and no WebSocket does. */
  isLost = false;

  /**
   * @param {string} url of the WebSocket
   * @param {import( "./environment.js").Environment} environment
   * @param {() => void} onlost
   */
  constructor(url, environment, onlost) {
    this.#environment = environment;
    this.#onlost = onlost;
    const page = new URL(environment.base);
    const address = new URL(url.replace("ws", "http"));
    // Where the endpoint is, no view has to work for an answer. Another origin would not answer this page.
    this.#url = address.origin === page.origin ? address.href : page.href;
  }

  /** No connection could be opened, or it was lost. */
  missed() {
    if (!this.#wasReached && !this.isLost) {
      this.#timer ??= this.#environment.setTimeout(() => void this.#ask(), PATIENCE);
    }
  }

  /**
   * The server said HELLO.
   *
   * @returns {boolean} it had been given up
   */
  found() {
    const wasLost = this.isLost;
    this.#wasReached = true;
    this.isLost = false;
    this.forget();
    return wasLost;
  }

  /** The line has stopped trying. */
  forget() {
    if (this.#timer !== null) {
      this.#environment.clearTimeout(this.#timer);
      this.#timer = null;
    }
  }

  async #ask() {
    const { isOnline, isServed } = this.#environment;
    const timer = this.#timer;
    const isServing = isOnline() && (await isServed(this.#url)) && isOnline();
    if (this.#timer !== timer) {
      return; // meanwhile it was reached, or the line has stopped trying
    }
    this.#timer = null;
    if (isServing) {
      this.isLost = true;
      this.#onlost();
    } else {
      this.missed();
    }
  }
}
