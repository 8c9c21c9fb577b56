/** One file as chunks, in order from where the server wants them. */
import { combine, crc32c } from "../protocol/crc32c.js";
import { UploadError } from "../protocol/errors.js";
import { HEADER_SIZE, MAX_CHUNK } from "../protocol/frames.js";
import { Prefixes } from "./prefixes.js";
import { GRAIN, failure } from "./reading.js";
import { loadSha256 } from "./sha256-loader.js";

/** @typedef {import( "./reading.js").Answer} Answer */
/** @typedef {import( "./reading.js").Failure} Failure */
/** @typedef {Extract<Answer, {type: "piece"}>} Piece */

/**
 * What DATA may carry next. Only valid until another one is taken from any source of the same Reader.
 *
 * @typedef {object} Chunk
 * @property {number} offset bytes from the start of the file
 * @property {number} size bytes
 * @property {number} crc CRC-32C of the payload alone
 * @property {Uint8Array<ArrayBuffer>} payload
 * @property {Uint8Array<ArrayBuffer>} frame room for the header, then the payload
 */

/**
 * @typedef {object} ComputeOptions
 * @property {AbortSignal} [signal]
 * @property {(done: number, total: number) => void} [onprogress] bytes; at most ten times a second
 */

/** Bytes. A file of at most so many is read at once and on the main thread: the way to the Worker and back would take longer. */
export const SMALL = 64 * 1024;

/** @param {Failure} failure */
export function unreadable({ message }) {
  return new UploadError("file_unreadable", { facts: { reason: message } });
}

/**
 * @typedef {object} Job
 * @property {import( "./reading.js").Request} request
 * @property {(result: any) => void} resolve
 * @property {(error: unknown) => void} reject
 * @property {(done: number) => void} progress
 */

/** The bytes of a file and their CRC-32C: see {@link import( "./reader.js").Reader.open}. */
export class Source {
  #wake;
  #reader;
  #hashes;
  #small;
  /** All bytes of a small file. @type {Uint8Array | null} */
  #bytes = null;
  /** What is read ahead, in order; the first piece may be taken in part. @type {Piece[]} */
  #pieces = [];
  /** End of what is read ahead. */
  #end = 0;
  #turn = 0;
  #reading = false;
  #closed = false;
  #prefixes = new Prefixes();
  /** @type {Map<number, Job>} */
  #jobs = new Map();
  #lastJob = 0;
  /** The last `take` found nothing. */
  #isStarved = false;

  /**
   * @param {Blob} file
   * @param {() => void} wake
   * @param {import( "./reader.js").Reader} reader
   * @param {number} id that of the reader
   * @param {boolean} hashes {@link digest} will be asked for
   */
  constructor(file, wake, reader, id, hashes) {
    this.file = file;
    this.size = file.size;
    this.id = id;
    /** Where the next chunk begins. */
    this.position = 0;
    /** Why nothing more can be read. @type {UploadError | null} */
    this.error = null;
    this.#wake = wake;
    this.#small = file.size <= SMALL;
    this.#reader = reader;
    this.#hashes = hashes;
  }

  /** The Worker owes it something. */
  get isWaiting() {
    return !this.#closed && this.error === null && (this.#isStarved || this.#jobs.size > 0);
  }

  /** Tell a new Worker of this file, and what is wanted of it. */
  begin() {
    this.#reader.post({ type: "open", id: this.id, file: this.file, digest: this.#hashes });
    for (const { request } of this.#jobs.values()) {
      this.#reader.post(request);
    }
    if (this.#reading) {
      this.#restart(this.position);
      this.#begin();
    }
  }

  /**
   * The next chunk. It is shorter than `maximum` only by less than a {@link GRAIN}, or at the end of the file.
   *
   * @param {number} maximum bytes; 0 only makes the reading begin
   * @returns {Chunk | null} null: not read yet (`wake` follows), less than a grain was asked for, or nothing is left
   * @throws {UploadError} `file_unreadable`
   */
  take(maximum) {
    if (this.error !== null) {
      throw this.error;
    }
    this.#begin();
    let size = Math.min(maximum, this.size - this.position, MAX_CHUNK);
    if (size !== this.size - this.position && !this.#small) {
      size -= size % GRAIN;
    }
    this.#isStarved = !this.#small && size > 0 && this.position + size > this.#end;
    if (this.#isStarved) {
      this.#reader.watch();
    }
    if (size <= 0 || this.position + size > this.#end) {
      return null;
    }
    const frame = this.#reader.frame(HEADER_SIZE + size);
    const payload = frame.subarray(HEADER_SIZE);
    const crc = this.#bytes === null ? this.#gather(payload) : this.#copy(this.#bytes, payload);
    const offset = this.position;
    this.#prefixes.append(offset, size, crc);
    this.position += size;
    return { offset, size, crc, payload, frame };
  }

  /**
   * The next chunk begins here: after READY and REWIND.
   *
   * @param {number} offset 0, what {@link crcAt} was asked for, or where a chunk ended that is not forgotten
   */
  seek(offset) {
    if (this.#prefixes.crc(offset) === undefined) {
      throw new RangeError(`the CRC of the first ${offset} bytes is not known`);
    }
    if (offset === this.position) {
      return;
    }
    this.position = offset;
    if (!this.#small) {
      this.#restart(offset);
    }
  }

  /** What was read ahead is void. @param {number} offset */
  #restart(offset) {
    this.#turn += 1;
    this.#reading = this.#isStarved = false;
    this.#pieces = [];
    this.#end = offset;
  }

  /**
   * Nothing will be asked for that lies before it.
   *
   * @param {number} durable
   */
  forget(durable) {
    this.#prefixes.forget(durable, this.position);
  }

  /**
   * CRC-32C of the first `offset` bytes. Reads what lies between there and the nearest place where it is known.
   *
   * @param {number} offset
   * @param {ComputeOptions} [options]
   * @returns {Promise<number>} rejects with an UploadError, or the signal's reason
   */
  async crcAt(offset, { signal, onprogress } = {}) {
    signal?.throwIfAborted();
    const known = this.#prefixes.crc(offset);
    if (known !== undefined) {
      return known;
    }
    if (offset > this.size) {
      throw new UploadError("file_changed", { facts: { reason: "The file is shorter than what was sent." } });
    }
    const [from, crc] = this.#prefixes.below(offset);
    const result = this.#small
      ? crc32c((await this.#read()).subarray(from, offset), crc)
      : await this.#work((job) => ({ type: "compute", id: this.id, job, offset: from, end: offset, crc }), signal, (done) =>
          onprogress?.(done, offset),
        );
    this.#prefixes.set(offset, result);
    return result;
  }

  /**
   * SHA-256 of the whole file. For a large one only when {@link Reader.open} was told to prepare it, and once.
   *
   * @returns {Promise<string>} 64 lower-case hex digits
   */
  async digest() {
    if (!this.#small) {
      return this.#work((job) => ({ type: "digest", id: this.id, job }));
    }
    const hash = new (await loadSha256())();
    hash.update(await this.#read());
    return hash.digest();
  }

  /** Read no more. What {@link crcAt} and {@link digest} have promised rejects with an `AbortError`. */
  close() {
    if (this.#closed) {
      return;
    }
    this.#closed = true;
    this.#pieces = [];
    this.#bytes = null;
    this.error ??= new UploadError("upload_interrupted", { message: "The file was closed." });
    const reason = new DOMException("The file was closed.", "AbortError");
    for (const job of this.#jobs.values()) {
      job.reject(reason);
    }
    this.#jobs.clear();
    if (!this.#small) {
      this.#reader.post({ type: "close", id: this.id });
      this.#reader.closed(this.id);
    }
  }

  /** @param {Exclude<Answer, {type: "loaded"}>} answer */
  receive(answer) {
    switch (answer.type) {
      case "piece":
        if (answer.turn === this.#turn) {
          this.#pieces.push(answer);
          this.#isStarved = false;
          this.#end = answer.offset + answer.size;
          this.#wake();
        } else {
          this.#consumed(answer);
        }
        break;
      case "failed":
        if (answer.turn === this.#turn) {
          this.#fail(answer.error);
        }
        break;
      case "progress":
        this.#jobs.get(answer.job)?.progress(answer.done);
        break;
      case "done":
        this.#jobs.get(answer.job)?.resolve(answer.result);
        break;
      case "not-done":
        this.#jobs.get(answer.job)?.reject(unreadable(answer.error));
        break;
    }
  }

  #begin() {
    if (this.#reading || this.position === this.size) {
      return;
    }
    this.#reading = true;
    if (this.#small) {
      this.#read().then(
        () => this.#wake(),
        (error) => {
          this.error ??= error;
          this.#wake();
        },
      );
    } else {
      this.#end = this.position;
      this.#reader.post({ type: "read", id: this.id, turn: this.#turn, offset: this.position });
    }
  }

  /** @returns {Promise<Uint8Array>} all of a small file */
  async #read() {
    if (this.#bytes === null) {
      try {
        const bytes = new Uint8Array(await this.file.arrayBuffer());
        this.#bytes = this.#closed ? null : bytes;
        this.#end = bytes.length;
        return bytes;
      } catch (error) {
        throw unreadable(failure(error));
      }
    }
    return this.#bytes;
  }

  /**
   * @param {Uint8Array} bytes
   * @param {Uint8Array} payload
   */
  #copy(bytes, payload) {
    payload.set(bytes.subarray(this.position, this.position + payload.length));
    return crc32c(payload);
  }

  /**
   * Fill `payload` from what was read ahead.
   *
   * @param {Uint8Array} payload
   * @returns {number} its CRC
   */
  #gather(payload) {
    let crc = 0;
    for (let filled = 0; filled < payload.length; ) {
      const piece = this.#pieces[0];
      const from = this.position + filled - piece.offset;
      const length = Math.min(piece.size - from, payload.length - filled);
      payload.set(new Uint8Array(piece.buffer, from, length), filled);
      for (let at = from; at < from + length; at += GRAIN) {
        crc = combine(crc, piece.crcs[at / GRAIN], Math.min(GRAIN, piece.size - at));
      }
      filled += length;
      if (from + length === piece.size) {
        this.#pieces.shift();
        this.#consumed(piece);
      }
    }
    return crc;
  }

  /** @param {Piece} piece */
  #consumed({ turn, buffer }) {
    this.#reader.post({ type: "consumed", id: this.id, turn, buffer }, [buffer]);
  }

  /** @param {Failure} failure */
  #fail(failure) {
    this.error ??= unreadable(failure);
    this.#wake();
  }

  /**
   * @param {(job: number) => import( "./reading.js").Request} asking
   * @param {AbortSignal} [signal]
   * @param {(done: number) => void} [progress]
   * @returns {Promise<any>}
   */
  async #work(asking, signal, progress = () => undefined) {
    if (this.#closed) {
      throw new DOMException("The file was closed.", "AbortError");
    }
    const job = ++this.#lastJob;
    const request = asking(job);
    const abort = () => {
      this.#reader.post({ type: "abort", id: this.id, job });
      this.#jobs.get(job)?.reject(signal?.reason);
    };
    signal?.addEventListener("abort", abort);
    try {
      return await new Promise((resolve, reject) => {
        this.#jobs.set(job, { request, resolve, reject, progress });
        this.#reader.post(request);
        this.#reader.watch();
      });
    } finally {
      signal?.removeEventListener("abort", abort);
      this.#jobs.delete(job);
    }
  }
}
