/**
 * Reads files piece by piece and computes their CRC-32C: the part of reader.js that runs in a Worker. Where a page cannot have
 * one, it runs on the main thread as it is: a piece costs about a millisecond.
 *
 * Each piece is read once, into a buffer that comes back to be filled again: fresh memory for each piece costs about as
 * much as reading it. A file is read ahead by {@link AHEAD} bytes and no more.
 */
import { crc32c } from "../protocol/crc32c.js";
import { loadSha256 } from "./sha256-loader.js";

/** Bytes that are read at once. Each piece leaves some KiB of garbage, which Chromium may collect only gigabytes later. */
export const PIECE = 1024 * 1024;
/** Bytes that one CRC of a piece covers: chunks of any multiple of it can be put together. */
export const GRAIN = 4 * 1024;
/** Bytes of one file that lie ready. */
export const AHEAD = 4 * 1024 * 1024;

/**
 * @typedef {(
 *   | {type: "open", id: number, file: Blob, digest: boolean}
 *   | {type: "read", id: number, turn: number, offset: number}
 *   | {type: "consumed", id: number, turn: number, buffer: ArrayBuffer}
 *   | {type: "compute", id: number, job: number, offset: number, end: number, crc: number}
 *   | {type: "digest", id: number, job: number}
 *   | {type: "abort", id: number, job: number}
 *   | {type: "close", id: number}
 * )} Request to the Worker. A `turn` is one run through the file; what belongs to an older one is void.
 */
/**
 * @typedef {(
 *   | {type: "loaded"}
 *   | {type: "piece", id: number, turn: number, offset: number, size: number, buffer: ArrayBuffer, crcs: Uint32Array}
 *   | {type: "failed", id: number, turn: number, error: Failure}
 *   | {type: "progress", id: number, job: number, done: number}
 *   | {type: "done", id: number, job: number, result: number | string}
 *   | {type: "not-done", id: number, job: number, error: Failure}
 * )} Answer
 */
/** @typedef {{message: string}} Failure why a file cannot be read, for the developer */
/** @typedef {{postMessage(message: unknown, transfer: Transferable[]): void}} Port */

/**
 * What went wrong with a file that cannot be read. Whether it has changed, its bytes have to say: File API, "Error steps", has
 * NotReadableError for a file that differs from its snapshot, be it only in its time, as for one that is locked or may not be read.
 *
 * @param {unknown} error
 * @returns {Failure}
 */
export function failure(error) {
  const { name, message } = /** @type {Error} */ (error);
  return { message: `${name}: ${message}` };
}

/**
 * Streams with a read under way. Chromium lets go of a stream that nothing but the promise of its own read would lead to, and
 * then the read never returns; so did WebKit (bug 302685). This leads to them.
 *
 * @type {Set<ReadableStreamBYOBReader>}
 */
const reading = new Set();

/** The bytes of a part of a file, in order. */
class Input {
  #file;
  #offset;
  #end;
  /** @type {ReadableStreamBYOBReader | null} */
  #stream = null;

  /**
   * @param {Blob} file
   * @param {number} offset
   * @param {number} end
   */
  constructor(file, offset, end) {
    this.#file = file;
    this.#offset = offset;
    this.#end = end;
    try {
      this.#stream = file.slice(offset, end).stream().getReader({ mode: "byob" });
    } catch {
      // A browser whose Blobs cannot be read into a given buffer: they are read slice by slice.
    }
  }

  /**
   * The next bytes, as many as the buffer holds unless the part ends before.
   *
   * @param {ArrayBuffer} buffer given away
   * @returns {Promise<Uint8Array<ArrayBuffer>>} in that buffer or in another one
   */
  async fill(buffer) {
    const size = Math.min(buffer.byteLength, this.#end - this.#offset);
    if (this.#stream === null) {
      const slice = this.#file.slice(this.#offset, this.#offset + size);
      const bytes = new Uint8Array(await slice.arrayBuffer());
      this.#offset += bytes.length;
      return bytes.length === size ? bytes : this.#tooShort();
    }
    reading.add(this.#stream);
    try {
      for (let filled = 0; filled < size; ) {
        const { value, done } = await this.#stream.read(new Uint8Array(buffer, filled, size - filled));
        if (done) {
          return this.#tooShort();
        }
        buffer = value.buffer;
        filled += value.length;
      }
    } finally {
      reading.delete(this.#stream);
    }
    this.#offset += size;
    if (this.#offset === this.#end) {
      // A stream that was opened before the file was changed does not notice; a new one does.
      await this.#file.slice(0, 1).arrayBuffer();
    }
    return new Uint8Array(buffer, 0, size);
  }

  /** @returns {never} */
  #tooShort() {
    throw new RangeError("The file became shorter while it was being read.");
  }

  cancel() {
    this.#stream?.cancel().catch(() => undefined);
  }
}

/** One open file. */
class Reading {
  #port;
  #id;
  #file;
  /** @type {import( "./sha256.js").Sha256 | null} */
  #hash = null;
  /** Of the hash, where there is to be one. Reading waits for it: each byte is to be read once. */
  #loading;
  #turn = 0;
  #credit = 0;
  /** Called when there is credit again, or another turn. */
  #wake = () => {};
  /** @type {ArrayBuffer[]} */
  #buffers = [];
  /** @type {Set<number>} */
  #jobs = new Set();

  /**
   * @param {Port} port
   * @param {number} id
   * @param {Blob} file
   * @param {boolean} digest
   */
  constructor(port, id, file, digest) {
    this.#port = port;
    this.#id = id;
    this.#file = file;
    this.#loading = digest ? this.#load() : null;
    this.#loading?.catch(() => undefined); // the next read rejects with it
  }

  /**
   * Read ahead from `offset` on, as far as consumed pieces allow.
   *
   * @param {number} turn
   * @param {number} offset
   */
  async read(turn, offset) {
    this.#turn = turn;
    this.#wake();
    this.#credit = AHEAD / PIECE;
    const input = new Input(this.#file, offset, this.#file.size);
    try {
      await this.#loading;
      while (offset < this.#file.size) {
        while (this.#credit === 0 && this.#turn === turn) {
          await new Promise((resolve) => {
            this.#wake = () => resolve(undefined);
          });
        }
        if (this.#turn !== turn) {
          return;
        }
        this.#credit -= 1;
        const size = Math.min(PIECE, this.#file.size - offset);
        const bytes = await input.fill(this.#buffers.pop() ?? new ArrayBuffer(size));
        const { buffer } = bytes;
        const crcs = new Uint32Array(Math.ceil(size / GRAIN));
        for (let grain = 0; grain < crcs.length; grain++) {
          crcs[grain] = crc32c(bytes.subarray(grain * GRAIN, (grain + 1) * GRAIN));
        }
        this.#add(offset, bytes);
        this.#post({ type: "piece", id: this.#id, turn, offset, size, buffer, crcs }, [
          buffer,
          crcs.buffer,
        ]);
        offset += size;
      }
    } catch (error) {
      this.#post({ type: "failed", id: this.#id, turn, error: failure(error) });
    } finally {
      input.cancel();
    }
  }

  /**
   * A piece was taken: its buffer can be filled again.
   *
   * @param {number} turn
   * @param {ArrayBuffer} buffer
   */
  consumed(turn, buffer) {
    if (buffer.byteLength === PIECE && this.#buffers.length < AHEAD / PIECE) {
      this.#buffers.push(buffer);
    }
    if (turn === this.#turn) {
      this.#credit += 1;
      this.#wake();
    }
  }

  /**
   * The CRC of the file up to `end`, from that of its first `offset` bytes.
   *
   * @param {number} job
   * @param {number} offset
   * @param {number} end
   * @param {number} crc
   */
  compute(job, offset, end, crc) {
    return this.#work(job, offset, end, (bytes) => {
      crc = crc32c(bytes, crc);
      return crc;
    });
  }

  /**
   * The SHA-256 of the whole file; only what was not read yet is read now.
   *
   * @param {number} job
   */
  async digest(job) {
    await this.#loading?.catch(() => undefined);
    await this.#work(job, this.#hash?.length ?? 0, this.#file.size, () => "");
  }

  async #load() {
    const Sha256 = await loadSha256();
    this.#hash = new Sha256();
  }

  /** @param {number} job */
  abort(job) {
    this.#jobs.delete(job);
  }

  close() {
    this.#turn = -1;
    this.#jobs.clear();
    this.#wake();
  }

  /**
   * @param {number} job
   * @param {number} offset
   * @param {number} end
   * @param {(bytes: Uint8Array) => number | string} take
   */
  async #work(job, offset, end, take) {
    this.#jobs.add(job);
    const input = new Input(this.#file, offset, end);
    /** @type {ArrayBuffer} */
    let buffer = new ArrayBuffer(PIECE);
    /** @type {number | string} */
    let result = take(new Uint8Array());
    let told = 0;
    try {
      if (result === "") await this.#loading;
      while (offset < end) {
        const bytes = await input.fill(buffer);
        if (!this.#jobs.has(job)) {
          return;
        }
        result = take(bytes);
        this.#add(offset, bytes);
        offset += bytes.length;
        buffer = bytes.buffer;
        if (performance.now() - told > 100) {
          told = performance.now();
          this.#post({ type: "progress", id: this.#id, job, done: offset });
        }
      }
      if (result === "" && this.#hash !== null) {
        result = this.#hash.digest();
      }
      this.#post({ type: "done", id: this.#id, job, result });
    } catch (error) {
      this.#post({ type: "not-done", id: this.#id, job, error: failure(error) });
    } finally {
      this.#jobs.delete(job);
      input.cancel();
    }
  }

  /**
   * Bytes may be read more than once, and count once for the digest.
   *
   * @param {number} offset
   * @param {Uint8Array} bytes
   */
  #add(offset, bytes) {
    const known = (this.#hash?.length ?? 0) - offset;
    if (this.#hash !== null && known >= 0 && known < bytes.length) {
      this.#hash.update(bytes.subarray(known));
    }
  }

  /**
   * @param {Answer} answer
   * @param {Transferable[]} [transfer]
   */
  #post(answer, transfer = []) {
    this.#port.postMessage(answer, transfer);
  }
}

/**
 * Answer what comes through a port.
 *
 * @param {Port} port
 * @returns {(request: Request) => void}
 */
export function serve(port) {
  /** @type {Map<number, Reading>} */
  const readings = new Map();
  return (request) => {
    if (request.type === "open") {
      readings.set(request.id, new Reading(port, request.id, request.file, request.digest));
      return;
    }
    const reading = readings.get(request.id);
    switch (request.type) {
      case "read":
        void reading?.read(request.turn, request.offset);
        break;
      case "consumed":
        reading?.consumed(request.turn, request.buffer);
        break;
      case "compute":
        void reading?.compute(request.job, request.offset, request.end, request.crc);
        break;
      case "digest":
        void reading?.digest(request.job);
        break;
      case "abort":
        reading?.abort(request.job);
        break;
      case "close":
        reading?.close();
        readings.delete(request.id);
        break;
    }
  };
}

/** Read for the page that started this Worker. */
export function serveWorker() {
  const scope = /** @type {Port & {onmessage: unknown}} */ (/** @type {unknown} */ (globalThis));
  const receive = serve(scope);
  scope.onmessage = (/** @type {MessageEvent<Request>} */ { data }) => receive(data);
  scope.postMessage({ type: "loaded" }, []);
}
