/** Gives the uploads of one Uploader their turns and streams, and sends its cancellations. */
import { Lane } from "./lane.js";
import { Line } from "./line.js";
import { Reader } from "../file/reader.js";
import { inSlices } from "./slices.js";

/** @typedef {import( "./upload.js").Upload} Upload */
/** @typedef {import( "./cancellation.js").Cancellation} Cancellation */
/** @typedef {import( "../protocol/errors.js").UploadError} UploadError */

/** Bytes: what fits is pipelined with others. */
const WINDOW = 8 * 1024 * 1024;
/** Milliseconds between two updates of the speed of uploads, whether something has arrived or not. */
const TICK = 1_000;

export class Turns {
  reader = new Reader();
  /** Those that are not over, in the order of their addition. @type {Set<Upload>} */
  uploads = new Set();
  /** Files up to a window: as many as have their bytes within one. */
  #small = new Lane(WINDOW, (upload) => upload.size);
  #large;
  /** They have a turn and all they need but a stream. @type {Set<Upload>} */
  #prepared = new Set();
  /** They wait for a stream of their own. @type {Set<Cancellation>} */
  #cancellations = new Set();
  #line;
  /** What waiting uploads wait for; null while the line is open. */
  #waits = /** @type {{event: "offline" | "login", error: UploadError} | null} */ (null);
  #isClosed = false;
  #isScheduled = false;
  /** @type {number | null} */
  #ticking = null;

  /**
   * @param {string} url `ws:` or `wss:`
   * @param {import( "./environment.js").Environment} environment
   * @param {number} parallel large ones at a time
   * @param {((error?: UploadError) => Promise<string | undefined>) | undefined} authenticate
   * @param {EventTarget} page gets the events of the line
   */
  constructor(url, environment, parallel, authenticate, page) {
    this.url = url;
    this.environment = environment;
    this.#large = new Lane(parallel, () => 1);
    this.#line = new Line(url, authenticate, this, page);
  }

  get line() {
    return this.#line;
  }

  get hasWork() {
    return !this.#large.isEmpty || !this.#small.isEmpty || this.#cancellations.size > 0;
  }

  close() {
    this.#isClosed = true;
    this.#stopTicking();
    this.#line.close();
    this.reader.close();
  }

  // Called by upload.js --------------------------------------------------------------------------------

  /** It wants a turn. @param {Upload} upload */
  enqueue(upload) {
    this.uploads.add(upload);
    if (upload.file === null) {
      void upload.load().then((isWaiting) => isWaiting && this.#join(upload));
    } else {
      this.#join(upload);
    }
  }

  /** It no longer wants one. @param {Upload} upload */
  dequeue(upload) {
    this.#lanes.forEach((lane) => lane.dequeue(upload));
  }

  /** All was sent: others may use what its turn takes. @param {Upload} upload */
  share(upload) {
    this.#lanes.forEach((lane) => lane.share(upload));
    this.soon();
  }

  /** Its turn is over. @param {Upload} upload */
  leave(upload) {
    this.#lanes.forEach((lane) => lane.leave(upload));
    this.#prepared.delete(upload);
    this.soon();
  }

  /** It has ended, unless it is tried again. @param {Upload} upload */
  over(upload) {
    this.uploads.delete(upload);
  }

  /** `received` of an upload has risen. */
  progressed() {
    this.#line.progressed();
  }

  /** The server wants a fresh login. @param {UploadError} error */
  renew(error) {
    void this.#line.renew(error);
  }

  /** Send it when a stream is free. @param {Cancellation} cancellation */
  abandon(cancellation) {
    if (!this.#isClosed) {
      this.#cancellations.add(cancellation);
      this.soon();
    }
  }

  // Called by line.js ------------------------------------------------------------------------------

  /** Uploads may begin. */
  opened() {
    this.#waits = null;
    this.#giveTurns();
    this.#tellWaiting("online", null);
  }

  /**
   * @param {"offline" | "login"} event what uploads wait for now
   * @param {UploadError} error
   */
  wait(event, error) {
    this.#waits = { event, error };
    this.#tellWaiting(event, error);
  }

  /** The line was given up. @param {UploadError} error */
  giveUp(error) {
    void inSlices([...this.#waiting()], (upload) => upload.giveUp(error));
  }

  /** Give turns when this task is over: thousands of files are added in one. */
  soon() {
    if (!this.#isScheduled) {
      this.#isScheduled = true;
      queueMicrotask(() => {
        this.#isScheduled = false;
        this.#giveTurns();
      });
    }
  }

  // -----------------------------------------------------------------------------------------------

  get #lanes() {
    return [this.#large, this.#small];
  }

  /** @param {Upload} upload */
  #join(upload) {
    (upload.size > WINDOW ? this.#large : this.#small).enqueue(upload);
    if (this.#waits !== null) {
      upload.wait(this.#waits.event, this.#waits.error);
    }
    this.soon();
  }

  #giveTurns() {
    if (this.#isClosed) {
      return;
    }
    this.#line.attend();
    const { connection } = this.#line;
    if (connection !== null) {
      this.#cancelAll(connection);
      void inSlices(this.#turns(connection.hello.max_streams), (upload) => void this.#prepare(upload));
      this.#attach();
    }
    this.#tick();
  }

  /**
   * The uploads that get a turn now.
   *
   * @param {number} streams that the server allows
   */
  *#turns(streams) {
    for (const lane of this.#lanes) {
      // A stream for each upload that has a turn; at least one is left for the small ones.
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

  /** Give streams to prepared uploads, as long as some are free. */
  #attach() {
    const { connection } = this.#line;
    void inSlices(this.#prepared, (upload) => {
      if (connection === null || connection !== this.#line.connection || !upload.attach(connection)) {
        return false;
      }
      return this.#prepared.delete(upload);
    });
  }

  /** @param {import( "./connection.js").Connection} connection */
  #cancelAll(connection) {
    for (const cancellation of this.#cancellations) {
      if (!cancellation.open(connection)) {
        return;
      }
      this.#cancellations.delete(cancellation);
    }
  }

  /** The speed of uploads that have a turn falls while nothing arrives. */
  #tick() {
    const isBusy = this.#large.turns + this.#small.turns > 0;
    if (!isBusy) {
      this.#stopTicking();
    } else {
      this.#ticking ??= this.environment.setTimeout(() => {
        this.#ticking = null;
        this.#lanes.forEach((lane) => lane.eachTurn((upload) => upload.tick()));
        this.#tick();
      }, TICK);
    }
  }

  #stopTicking() {
    if (this.#ticking !== null) {
      this.environment.clearTimeout(this.#ticking);
      this.#ticking = null;
    }
  }

  /**
   * @param {"offline" | "login" | "online"} event
   * @param {UploadError | null} error
   */
  #tellWaiting(event, error) {
    const waits = this.#waits;
    void inSlices(this.#waiting(), (upload) => {
      upload.wait(event, error);
      return this.#waits === waits;
    });
  }

  *#waiting() {
    for (const lane of this.#lanes) {
      yield* lane.waiting();
    }
    yield* this.#prepared;
  }
}
