/** What one upload sends: a file, perhaps behind a handle, opened when its turn comes and opened again when it could not be read. */
import { UploadError } from "../protocol/errors.js";
import { toHex } from "../protocol/frames.js";

/** Bytes. Files up to here are read as a whole before their turn begins, so that CREATE, all bytes and FINISH are sent together. */
export const IN_MEMORY = 64 * 1024;

export class Content {
  #reader;
  /** @type {import( "../file/source.js").Source | null} */
  #source = null;
  /** @type {Promise<string> | null} */
  #digest = null;

  /**
   * @param {import( "../file/reader.js").Reader} reader
   * @param {File | Blob | FileSystemFileHandle | null} what null: there is nothing to send
   */
  constructor(reader, what) {
    this.#reader = reader;
    const isHandle = what !== null && !(what instanceof Blob);
    this.handle = isHandle ? what : undefined;
    /** @type {File | Blob | null} */
    this.file = isHandle ? null : what;
  }

  /** null: it is not open. */
  get source() {
    return this.#source;
  }

  /**
   * Look at what is behind the handle.
   *
   * @throws {UploadError} `file_unreadable`
   */
  async load() {
    try {
      this.file ??= (await this.handle?.getFile()) ?? null;
    } catch (error) {
      throw unreadable(error);
    }
  }

  /**
   * Open the file, and read it as a whole where it has at most {@link IN_MEMORY}.
   *
   * @param {Blob} file
   * @param {string | undefined} digest that will be asked for
   * @param {() => void} wake there may be more to take
   * @throws {UploadError} `file_unreadable`
   */
  async open(file, digest, wake) {
    await new Promise((resolve) => {
      const source = this.#reader.open(file, {
        wake: () => {
          resolve(undefined);
          wake();
        },
        digest,
      });
      this.#source = source;
      if (file.size === 0 || file.size > IN_MEMORY) {
        resolve(undefined);
      } else {
        source.take(0); // begins to read
      }
    });
    if (this.#source?.error) {
      throw this.#source.error;
    }
  }

  /**
   * @param {number} size bytes that the server has
   * @returns {Promise<string>} the CRC of the whole file, 8 hex digits; "" where it is not that long, or not open
   * @throws {UploadError} `file_unreadable`
   */
  async crc(size) {
    if (this.#source === null || size !== this.#source.size) {
      return "";
    }
    try {
      return toHex(await this.#source.crcAt(size));
    } catch (error) {
      throw unreadable(error);
    }
  }

  /** Computed once, however often it is asked for. @returns {Promise<string> | null} null: it is not open */
  digest() {
    if (this.#source !== null) {
      this.#digest ??= this.#source.digest();
    }
    return this.#digest;
  }

  /** What is behind the handle may have changed, and what could not be read may be readable. */
  lookAgain() {
    if (this.handle) {
      this.file = null;
    }
    this.close();
  }

  close() {
    this.#digest = null;
    this.#source?.close();
    this.#source = null;
  }
}

/**
 * @param {unknown} error
 * @returns {UploadError}
 */
export function unreadable(error) {
  return error instanceof UploadError ? error : new UploadError("file_unreadable", { cause: error });
}
