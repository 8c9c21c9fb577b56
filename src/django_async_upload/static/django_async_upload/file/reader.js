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

/** Milliseconds; a Worker whose script does not come is none. */
const PATIENCE = 10_000;

/** The Worker, or what stands in for it. */
export class Reader {
  /** Ends the Worker, or what stands in for it. */
  #stop = () => {};
  /** @type {((request: Request, transfer: Transferable[]) => void) | null} */
  #deliver = null;
  /** What waits for the Worker to be loaded. @type {{request: Request, transfer: Transferable[]}[]} */
  #waiting = [];
  /** @type {Map<number, (answer: any) => void>} */
  #receivers = new Map();
  #lastId = 0;
  #started = false;
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
    const id = ++this.#lastId;
    const source = new Source(file, wake, small, {
      frame: (size) => this.#frameOf(size),
      post: (request, transfer = []) => this.#post({ ...request, id }, transfer),
    });
    if (!small) {
      this.#receivers.set(id, (answer) => source.receive(answer));
      this.#post({ type: "open", id, file, digest: digest === "sha-256" }, []);
      source.onclose = () => this.#receivers.delete(id);
    }
    return source;
  }

  /** End the Worker. No source of this Reader will read any more. */
  close() {
    this.#stop();
    this.#receivers.clear();
    this.#deliver = () => undefined;
    this.#waiting = [];
  }

  /** @param {number} size */
  #frameOf(size) {
    if (this.#frame.length < size) {
      // Of two sizes only: small files do not need a megabyte.
      const length = size <= SMALL + HEADER_SIZE ? SMALL : MAX_CHUNK;
      this.#frame = new Uint8Array(HEADER_SIZE + length);
    }
    return this.#frame.subarray(0, size);
  }

  /**
   * @param {Request} request
   * @param {Transferable[]} transfer
   */
  #post(request, transfer) {
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
        for (const receive of this.#receivers.values()) {
          receive({ type: "lost", message: event.message });
        }
      };
      this.#open((request, transfer) => worker.postMessage(request, transfer));
    };
  }

  /** The same on the main thread. A channel keeps it asynchronous, and lets the page breathe between pieces. */
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

  /** @param {Answer} answer */
  #receive(answer) {
    if (answer.type !== "loaded") {
      this.#receivers.get(answer.id)?.(answer);
    }
  }
}
