/** One upload on one connection, from CREATE to the frame that closes its stream. */
import { errorOf } from "./connection.js";
import { SENDS, Stream } from "../protocol/stream.js";
import { UploadError } from "../protocol/errors.js";
import { toHex } from "../protocol/frames.js";

/** @typedef {import( "../protocol/messages.js").Message} Message */
/** @typedef {import( "../protocol/messages.js").Completed} Completed */

/** @typedef {{readonly sent: number, readonly received: number, readonly durable: number}} Place bytes from the start of the file */

export class Attachment {
  #connection;
  #source;
  #upload;
  /** @type {import( "../protocol/stream.js").Stream} */
  #stream;
  /** The error for which it is released; null where a pause or the page asked for that. @type {UploadError | null} */
  #reason = null;
  /** Data may follow CREATE before it is answered. */
  #isFresh;
  /** So many things of the source are being computed: nothing is sent meanwhile. */
  #busy = 0;
  #isOver = false;
  #abort = new AbortController();

  /**
   * Open a stream for an upload; null while none is free. It begins with the first `wake`.
   *
   * @param {import( "./connection.js").Connection} connection
   * @param {import( "../file/source.js").Source} source
   * @param {import( "./upload.js").Upload} upload
   * @param {boolean} isFresh the server never saw its key
   * @throws {RangeError | TypeError} where CREATE cannot be built
   */
  static open(connection, source, upload, isFresh) {
    const attachment = new Attachment(connection, source, upload, isFresh);
    const stream = connection.open(attachment, (protocol) => protocol.sendCreate(upload.create));
    if (stream === null) {
      return null;
    }
    attachment.#stream = stream;
    return attachment;
  }

  /**
   * @param {import( "./connection.js").Connection} connection
   * @param {import( "../file/source.js").Source} source
   * @param {import( "./upload.js").Upload} upload
   * @param {boolean} isFresh
   */
  constructor(connection, source, upload, isFresh) {
    this.#connection = connection;
    this.#source = source;
    this.#upload = upload;
    this.#isFresh = isFresh;
    this.#stream = new Stream(0, "closed");
  }

  /** There may be something to do: bytes were read, or it has just been opened. */
  wake() {
    if (!this.#isOver) {
      this.#connection.ready(this);
    }
  }

  /**
   * Send CANCEL. The upload gets no further calls.
   *
   * @param {import( "./cancellation.js").Cancellation} cancellation gets the messages of the stream instead
   * @returns {boolean} it was sent; false: the cancellation needs a stream of its own
   */
  cancel(cancellation) {
    const isSent = SENDS[this.#stream.state].CANCEL !== undefined;
    if (isSent) {
      this.#connection.handOver(this.#stream, cancellation);
      this.#connection.say((protocol) => protocol.sendCancel(this.#stream.id));
    }
    this.#end();
    return isSent;
  }

  /**
   * Send RELEASE; `released` follows, or the end that was on its way.
   *
   * @returns {boolean} false: it cannot be sent behind FINISH, RELEASE or CANCEL
   */
  release() {
    if (SENDS[this.#stream.state].RELEASE === undefined) {
      return false;
    }
    this.#connection.say((protocol) => protocol.sendRelease(this.#stream.id));
    this.#abort.abort();
    return true;
  }

  /** Send RELEASE. The upload gets no further calls. */
  leave() {
    this.release();
    this.#end();
  }

  // Called by connection.js ----------------------------------------------------------------------

  step() {
    const stream = this.#stream;
    const maySend = stream.state === "sending" || (stream.state === "creating" && this.#isFresh);
    if (this.#isOver || this.#reason !== null || this.#busy > 0 || !maySend) {
      return false;
    }
    try {
      if (stream.sent === this.#source.size) {
        this.#finish();
        return false;
      }
      const chunk = this.#source.take(this.#connection.room(stream));
      if (chunk === null) {
        return false; // the source calls `wake`, or an ACK brings credit
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
        this.#upload.moved(this.#stream, SENDS[this.#stream.state].RELEASE === undefined);
        return;
      case "PROGRESS":
        this.#upload.checked(message.phase);
        return;
      case "COMPLETED":
        this.#end();
        this.#upload.identified(message.upload);
        void this.#upload.completed(message);
        return;
      case "RELEASED":
        this.#end();
        if (this.#reason === null) {
          this.#upload.released();
        } else {
          this.#upload.interrupted(this.#reason);
        }
        return;
      case "CANCELLED":
        this.#end();
        this.#upload.interrupted(new UploadError("upload_over", { facts: { state: "cancelled" } }));
        return;
      case "ERROR":
        this.#end();
        this.#upload.interrupted(errorOf(message));
    }
  }

  /** @param {UploadError} error */
  lost(error) {
    if (!this.#isOver) {
      this.#end();
      this.#upload.interrupted(error);
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
   * Read the file again as far as the server has it, and send PROOF.
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
        this.#upload.sent();
      }
    });
  }

  /**
   * The file cannot be read on. The upload stays: which bytes a file has is for the proof to say, not for its reader.
   *
   * @param {unknown} error
   */
  #giveUp(error) {
    if (this.#reason !== null) {
      return;
    }
    this.#reason = error instanceof UploadError ? error : new UploadError("file_unreadable", { cause: error });
    if (!this.release()) {
      this.#end();
      this.#upload.interrupted(this.#reason);
    }
  }

  #end() {
    this.#isOver = true;
    this.#abort.abort();
  }
}
