/**
 * Reads the files of one Uploader, ready to be sent, without ever holding up the page.
 *
 * One Worker reads all of them, each byte once, a few MiB ahead; see reading.js. It gives a CRC for each grain of a file,
 * of which the CRC of any chunk is combined: so how long a chunk shall be is decided when it is taken. Chunks are handed out in
 * one buffer that has room for the frame's header in front: `WebSocket.send()` copies it, and it is filled again. Why not
 * `Blob`s that the browser would read itself: see "In the browser" in docs/benchmarks.md.
 */
import { HEADER_SIZE, MAX_CHUNK } from "../protocol/frames.js";
import { serve } from "./reading.js";
import { SMALL, Source } from "./source.js";
import { startReader } from "./workers.js";

/** @typedef {import( "./reading.js").Request} Request */
/** @typedef {import( "./reading.js").Answer} Answer */

/** Milliseconds after which a Worker whose script was not loaded is given up. */
const PATIENCE = 10_000;
/** Milliseconds without an answer while one is wanted, after which another Worker is made; twice as many for each in a row. */
const SILENCE = 10_000;
/** Workers that died or fell silent in a row; then the page reads by itself. */
const MOST_LOST = 3;

/** The Worker, or what stands in for it. */
export class Reader {
  /** Ends the Worker, or what stands in for it. */
  #stop = () => {};
  /** @type {((request: Request, transfer: Transferable[]) => void) | null} */
  #deliver = null;
  /** What waits for the Worker to be loaded. @type {{request: Request, transfer: Transferable[]}[]} */
  #waiting = [];
  /** The large files by id. @type {Map<number, Source>} */
  #sources = new Map();
  #lastId = 0;
  #started = false;
  /** Runs while something is wanted. @type {ReturnType<typeof setTimeout> | null} */
  #watchdog = null;
  #lost = 0;
  #frame = new Uint8Array(0);

  /**
   * A file to send. Nothing is read until something is taken.
   *
   * @param {Blob} file
   * @param {object} options
   * @param {() => void} options.wake called in a task of its own whenever {@link Source.take} may give more, or throws
   * @param {string} [options.digest] `"sha-256"`: {@link Source.digest} will be asked for
   * @returns {Source}
   */
  open(file, { wake, digest }) {
    const small = file.size <= SMALL;
    const source = new Source(file, wake, this, ++this.#lastId, digest === "sha-256");
    if (!small) {
      this.#sources.set(source.id, source);
      source.begin();
    }
    return source;
  }

  // Called by source.js --------------------------------------------------------------------------------

  /**
   * A buffer for a chunk; that of any chunk before is void.
   *
   * @param {number} size
   */
  frame(size) {
    if (this.#frame.length < size) {
      // Of two sizes only: small files do not need a megabyte.
      const length = size <= SMALL + HEADER_SIZE ? SMALL : MAX_CHUNK;
      this.#frame = new Uint8Array(HEADER_SIZE + length);
    }
    return this.#frame.subarray(0, size);
  }

  /**
   * @param {Request} request
   * @param {Transferable[]} [transfer]
   */
  post(request, transfer = []) {
    if (this.#deliver !== null) {
      this.#deliver(request, transfer);
      return;
    }
    this.#waiting.push({ request, transfer });
    if (!this.#started) {
      this.#started = true;
      this.#start();
    }
  }

  /** Something is wanted, and the Worker has to answer. */
  watch() {
    if (this.#lost < MOST_LOST) {
      this.#watchdog ??= setTimeout(() => {
        this.#watchdog = null;
        this.#replace();
      }, SILENCE * 2 ** this.#lost);
    }
  }

  /** Nothing more will be asked of a source. @param {number} id */
  closed(id) {
    this.#sources.delete(id);
  }

  /** End the Worker. No source of this Reader will read any more. */
  close() {
    this.#stop();
    this.#unwatch();
    this.#sources.clear();
    this.#deliver = () => undefined;
    this.#waiting = [];
  }

  #start() {
    let worker;
    try {
      worker = startReader();
    } catch {
      this.#readHere(); // another origin, or no Workers at all
      return;
    }
    const giveUp = () => {
      this.#stop();
      this.#readHere();
    };
    const timer = setTimeout(giveUp, PATIENCE);
    this.#stop = () => {
      clearTimeout(timer);
      worker.terminate();
    };
    worker.onerror = (event) => {
      event.preventDefault();
      giveUp(); // a content security policy, a script that is missing
    };
    worker.onmessage = (/** @type {MessageEvent<Answer>} */ { data }) => {
      if (data.type !== "loaded") {
        this.#receive(data);
        return;
      }
      clearTimeout(timer);
      worker.onerror = (event) => {
        event.preventDefault();
        this.#replace();
      };
      this.#open((request, transfer) => worker.postMessage(request, transfer));
    };
  }

  /** The same on the main thread. A channel keeps it asynchronous, and lets the page do other work between pieces. */
  #readHere() {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = ({ data }) => this.#receive(data);
    this.#stop = () => port1.close();
    this.#open(serve(port2));
  }

  /** @param {(request: Request, transfer: Transferable[]) => void} deliver */
  #open(deliver) {
    this.#deliver = deliver;
    for (const { request, transfer } of this.#waiting.splice(0)) {
      deliver(request, transfer);
    }
  }

  /** The Worker is dead or stuck: another one reads what is wanted. */
  #replace() {
    this.#unwatch();
    if (![...this.#sources.values()].some((source) => source.isWaiting)) {
      return;
    }
    this.#stop();
    this.#lost += 1;
    this.#deliver = null;
    this.#waiting = [];
    for (const source of this.#sources.values()) {
      source.begin();
    }
    if (this.#lost < MOST_LOST) {
      this.#start();
      this.watch();
    } else {
      this.#readHere();
    }
  }

  #unwatch() {
    if (this.#watchdog !== null) {
      clearTimeout(this.#watchdog);
      this.#watchdog = null;
    }
  }

  /** @param {Answer} answer */
  #receive(answer) {
    if (answer.type === "loaded") {
      return;
    }
    const isWatched = this.#watchdog !== null;
    this.#unwatch();
    this.#lost = this.#lost < MOST_LOST ? 0 : this.#lost;
    this.#sources.get(answer.id)?.receive(answer);
    if (isWatched && [...this.#sources.values()].some((source) => source.isWaiting)) {
      this.watch();
    }
  }
}
