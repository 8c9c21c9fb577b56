/** One upload on one connection, from CREATE to the frame that closes its stream. */
import { errorOf } from "./connection.js";
import { SENDS } from "../protocol/client.js";
import { UploadError } from "../protocol/errors.js";
import { toHex } from "../protocol/frames.js";

/** @typedef {import( "../protocol/messages.js").Message} Message */
/** @typedef {import( "../protocol/messages.js").Completed} Completed */

/** @typedef {{readonly sent: number, readonly received: number, readonly durable: number}} Place bytes from the start of the file */

/**
 * The upload that is attached.
 *
 * @typedef {object} Attached
 * @property {() => Promise<Record<string, string> | undefined>} digests what CREATE promised
 * @property {(id: string) => void} identified the server named the upload
 * @property {(place: Place) => void} placed the server said where to begin, or to begin again
 * @property {(place: Place) => void} moved bytes
 * @property {() => void} finishing all was sent, FINISH too
 * @property {(phase: string, done: number, total: number) => void} checked what the server does after that
 * @property {(completed: Completed) => void} completed
 * @property {() => void} released the stream is closed, the upload stays
 * @property {(error: UploadError) => void} failed the stream, the connection or the file is lost
 */

export class Attachment {
  #connection;
  #source;
  #upload;
  /** @type {import( "../protocol/client.js").Stream} */
  #stream;
  /** Data may follow CREATE before it is answered. */
  #isFresh;
  /** So many things of the source are being computed: nothing is sent meanwhile. */
  #busy = 0;
  #isOver = false;
  #abort = new AbortController();

  /**
   * @param {import( "./connection.js").Connection} connection
   * @param {import( "../file/source.js").Source} source
   * @param {import( "../protocol/client.js").Stream} stream just opened
   * @param {Attached} upload
   * @param {boolean} isFresh the server never saw its key
   */
  constructor(connection, source, stream, upload, isFresh) {
    this.#connection = connection;
    this.#source = source;
    this.#stream = stream;
    this.#upload = upload;
    this.#isFresh = isFresh;
  }

  /**
   * Open a stream for an upload; null while the connection has none to give. It begins with the first `wake`.
   *
   * @param {import( "./connection.js").Connection} connection
   * @param {import( "../file/source.js").Source} source
   * @param {Omit<import( "../protocol/messages.js").Create, "type">} create
   * @param {Attached} upload
   * @param {boolean} isFresh
   * @throws {RangeError | TypeError} where CREATE cannot be told
   */
  static open(connection, source, create, upload, isFresh) {
    /** @type {Attachment | null} */
    let attachment = null;
    const holder = {
      step: () => attachment?.step() ?? false,
      /** @param {Message} message */
      received: (message) => attachment?.received(message),
      /** @param {UploadError} error */
      lost: (error) => attachment?.lost(error),
    };
    const stream = connection.open(holder, (protocol) => protocol.sendCreate(create));
    if (stream !== null) {
      attachment = new Attachment(connection, source, stream, upload, isFresh);
      attachment.wake = () => connection.ready(holder);
    }
    return attachment;
  }

  /** There may be something to do: bytes were read, or somebody asked. */
  wake() {}

  /**
   * Throw the upload away. Nothing is heard of it any longer.
   *
   * @returns {boolean} the server has been told
   */
  cancel() {
    const told = SENDS[this.#stream.state].CANCEL !== undefined;
    if (told) {
      this.#connection.say((protocol) => protocol.sendCancel(this.#stream.id));
    }
    this.#end();
    return told;
  }

  /**
   * Leave the upload as it is; `released` follows, or the end that was on its way.
   *
   * @returns {boolean} false: all has been sent, it cannot be left
   */
  release() {
    if (SENDS[this.#stream.state].RELEASE === undefined) {
      return false;
    }
    this.#connection.say((protocol) => protocol.sendRelease(this.#stream.id));
    this.#abort.abort();
    return true;
  }

  // What the connection says ----------------------------------------------------------------------

  step() {
    const stream = this.#stream;
    const maySend = stream.state === "sending" || (stream.state === "creating" && this.#isFresh);
    if (this.#isOver || this.#busy > 0 || !maySend) {
      return false;
    }
    try {
      if (stream.sent === this.#source.size) {
        this.#finish();
        return false;
      }
      const chunk = this.#source.take(this.#connection.room(stream));
      if (chunk === null) {
        return false; // the source wakes us, or an ACK brings credit
      }
      this.#connection.sendChunk(stream, chunk);
      return true;
    } catch (error) {
      this.#giveUp(error);
      return false;
    }
  }

  /** @param {Message} message */
  received(message) {
    if (this.#isOver) {
      return;
    }
    switch (message.type) {
      case "CREATED":
        this.#upload.identified(message.upload);
        if (!this.#isFresh && this.#stream.state === "sending") {
          this.#goOn(0); // the server has forgotten the upload, and begins it anew
        }
        this.#upload.placed(this.#stream);
        return;
      case "ATTACHED":
        this.#upload.identified(message.upload);
        if (this.#stream.state === "proving") {
          this.#prove(message.durable, message.received);
        }
        return;
      case "READY":
      case "REWIND":
        if (this.#stream.state === "sending") {
          this.#goOn(message.offset);
        }
        this.#upload.placed(this.#stream);
        return;
      case "ACK":
        this.#source.forget(message.durable);
        this.#upload.moved(this.#stream);
        return;
      case "PROGRESS":
        this.#upload.checked(message.phase, message.done, message.total);
        return;
      case "COMPLETED":
        this.#end();
        this.#upload.identified(message.upload);
        this.#upload.completed(message);
        return;
      case "RELEASED":
        this.#end();
        this.#upload.released();
        return;
      case "CANCELLED":
        this.#end();
        this.#upload.failed(new UploadError("upload_over", { facts: { state: "cancelled" } }));
        return;
      case "ERROR":
        this.#end();
        this.#upload.failed(errorOf(message));
    }
  }

  /** @param {UploadError} error */
  lost(error) {
    if (!this.#isOver) {
      this.#end();
      this.#upload.failed(error);
    }
  }

  // -----------------------------------------------------------------------------------------------

  /**
   * Compute something of the source, then go on; what it throws ends the attachment.
   *
   * @param {() => Promise<void>} compute
   */
  async #compute(compute) {
    this.#busy += 1;
    try {
      await compute();
    } catch (error) {
      if (!this.#isOver && !this.#abort.signal.aborted) {
        this.#giveUp(error);
      }
      return;
    } finally {
      this.#busy -= 1;
    }
    this.wake();
  }

  /**
   * Read the file again as far as the server has it, and say so.
   *
   * @param {number} durable
   * @param {number} received
   */
  #prove(durable, received) {
    this.#isFresh = false;
    const { size } = this.#source;
    const signal = this.#abort.signal;
    this.#compute(async () => {
      if (durable > size) {
        throw new UploadError("file_changed", { facts: { offset: durable } });
      }
      const first = await this.#source.crcAt(durable, { signal });
      const second = received <= size ? await this.#source.crcAt(received, { signal }) : undefined;
      if (this.#stream.state === "proving" && !this.#isOver) {
        const proof = [toHex(first), second === undefined ? undefined : toHex(second)];
        this.#connection.say((protocol) =>
          protocol.sendProof(this.#stream.id, proof[0] ?? "", proof[1]),
        );
      }
    });
  }

  /**
   * What was on its way is void; go on at `offset`.
   *
   * @param {number} offset
   */
  #goOn(offset) {
    try {
      this.#source.seek(offset);
    } catch (error) {
      if (!(error instanceof RangeError)) {
        throw error;
      }
      // The boundary was forgotten, or never was one: the bytes before it are read again.
      this.#compute(async () => {
        await this.#source.crcAt(offset, { signal: this.#abort.signal });
        this.#source.seek(offset);
      });
    }
  }

  #finish() {
    const stream = this.#stream;
    const { size } = this.#source;
    this.#compute(async () => {
      const crc = toHex(await this.#source.crcAt(size));
      const digests = await this.#upload.digests();
      // A REWIND may have come meanwhile.
      if (stream.sent === size && SENDS[stream.state].FINISH !== undefined && !this.#isOver) {
        this.#connection.say((protocol) =>
          protocol.sendFinish(stream.id, { size, crc32c: crc, digests }),
        );
        this.#upload.finishing();
      }
    });
  }

  /**
   * The file cannot be read on. Where it has changed while it was sent nobody can complete this upload; otherwise it stays, for the
   * right file or a better time.
   *
   * @param {unknown} error
   */
  #giveUp(error) {
    const reason =
      error instanceof UploadError ? error : new UploadError("file_unreadable", { cause: error });
    if (this.#source.error?.code === "file_changed") {
      this.cancel();
    } else {
      this.release();
      this.#end();
    }
    this.#upload.failed(reason);
  }

  #end() {
    this.#isOver = true;
    this.#abort.abort();
  }
}
