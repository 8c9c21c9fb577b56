import { PATIENCE } from "./within.js";

/**
 * What a page remembers of uploads, in IndexedDB, so that the next page can go on with those that are not finished, and post
 * the receipts of those that are. It holds no bytes of the file and no ticket; a FileSystemFileHandle where the browser gave one.
 *
 * Remembering is a service, never a condition: whatever IndexedDB refuses (no room, a private window, blocked by the user or
 * by policy), the upload goes on and these methods say that nothing was kept.
 */

/**
 * @typedef {object} UploadRecord
 * @property {string} key the random key of CREATE, 32 hex digits
 * @property {string} url of the endpoint
 * @property {string} [owner] an opaque tag of the owner; `""` without one
 * @property {unknown} [place] JSON, opaque: where it was begun
 * @property {string} name
 * @property {number} size bytes
 * @property {string} type
 * @property {number} lastModified milliseconds since 1970
 * @property {string} [path] relative path within a folder
 * @property {string} [field]
 * @property {Record<string, unknown>} [metadata]
 * @property {string} [digest]
 * @property {string} [fingerprint] see file/fingerprint.js
 * @property {string} [upload] the server's id, once it has answered
 * @property {number} [durable] bytes
 * @property {number} [at] of the last {@link Records.put}, milliseconds since 1970
 * @property {FileSystemFileHandle} [handle]
 * @property {import( "./upload.js").Result} [result] of a finished one, whose receipt was not sent
 * @property {number} [receiptMaxAge] seconds from then on for which that receipt is valid
 */

const DATABASE = "async-upload";
const STORE = "uploads";
const WEEK = 7 * 24 * 3600 * 1000;
/** Seconds: RECEIPT_MAX_AGE of the server, where it was not changed. */
const DAY = 24 * 3600;
export class Records {
  #maxAge;
  /** @type {Promise<IDBDatabase | null> | undefined} */
  #opening;
  /** What is not written yet, by key; null is a deletion. @type {Map<string, UploadRecord | null>} */
  #changes = new Map();
  /** @type {Promise<boolean> | undefined} */
  #flushing;

  /**
   * @param {object} [options]
   * @param {number} [options.maxAge] milliseconds; what was not touched for longer is forgotten
   */
  constructor({ maxAge = WEEK } = {}) {
    this.#maxAge = maxAge;
  }

  /**
   * Add or replace a record. Changes that are made in one task are one transaction.
   *
   * @param {UploadRecord} record
   * @returns {Promise<boolean>} true when it is kept
   */
  put(record) {
    return this.#change(record.key, { ...record, at: Date.now() });
  }

  /**
   * @param {string} key
   * @returns {Promise<boolean>} true when it is gone
   */
  delete(key) {
    return this.#change(key, null);
  }

  /**
   * The records of an endpoint, of all owners, newest first. Those that are too old are forgotten.
   *
   * @param {string} url
   * @returns {Promise<UploadRecord[]>}
   */
  async all(url) {
    await this.#flushing;
    const now = Date.now();
    /** @param {UploadRecord} record */
    const isOld = ({ at = 0, result, receiptMaxAge = DAY }) => at + (result ? receiptMaxAge * 1000 : this.#maxAge) < now;
    const records = (await this.#read()).filter((record) => record.url === url);
    for (const record of records) {
      if (isOld(record)) {
        void this.delete(record.key);
      }
    }
    const fresh = records.filter((record) => !isOld(record));
    return fresh.sort((a, b) => (b.at ?? 0) - (a.at ?? 0));
  }

  /** Close the database. */
  async close() {
    const opening = this.#opening;
    this.#opening = Promise.resolve(null);
    await this.#flushing;
    (await opening)?.close();
  }

  /**
   * @param {string} key
   * @param {UploadRecord | null} record
   */
  #change(key, record) {
    this.#changes.set(key, record);
    this.#flushing ??= this.#flush();
    return this.#flushing;
  }

  async #flush() {
    // Not only for this task's changes: until it is open, all go into one transaction.
    const database = await this.#open();
    const changes = this.#changes;
    this.#changes = new Map();
    // Of the promise for these changes; later ones get one of their own.
    this.#flushing = undefined;
    return database !== null && write(database, changes);
  }

  /** @returns {Promise<UploadRecord[]>} */
  async #read() {
    const database = await this.#open();
    if (database === null) {
      return [];
    }
    return new Promise((resolve) => {
      try {
        const request = database.transaction(STORE).objectStore(STORE).getAll();
        request.onsuccess = () => resolve(request.result);
        request.onerror = () => resolve([]);
      } catch {
        resolve([]); // the connection was closed meanwhile
      }
    });
  }

  #open() {
    this.#opening ??= open(() => {
      this.#opening = undefined;
    });
    return this.#opening;
  }
}

/**
 * @param {() => void} onclose the connection is gone; the next access opens another
 * @returns {Promise<IDBDatabase | null>}
 */
function open(onclose) {
  return new Promise((resolve) => {
    let isLate = false;
    const timer = setTimeout(() => {
      isLate = true;
      resolve(null);
    }, PATIENCE);
    const settle = (/** @type {IDBDatabase | null} */ database) => {
      clearTimeout(timer);
      if (isLate) {
        database?.close();
      }
      resolve(database);
    };
    try {
      const request = indexedDB.open(DATABASE, 1);
      request.onupgradeneeded = () => {
        request.result.createObjectStore(STORE, { keyPath: "key" });
      };
      request.onsuccess = () => {
        const database = request.result;
        // Another tab has a newer version of this code, or the user clears the site's storage.
        database.onversionchange = () => {
          database.close();
          onclose();
        };
        database.onclose = onclose;
        settle(database);
      };
      request.onerror = () => settle(null);
    } catch {
      settle(null); // no indexedDB at all, or not for this origin
    }
  });
}

/**
 * @param {IDBDatabase} database
 * @param {Map<string, UploadRecord | null>} changes
 * @returns {Promise<boolean>}
 */
function write(database, changes) {
  return new Promise((resolve) => {
    try {
      const transaction = database.transaction(STORE, "readwrite");
      transaction.oncomplete = () => resolve(true);
      transaction.onabort = () => resolve(false);
      const store = transaction.objectStore(STORE);
      for (const [key, record] of changes) {
        if (record === null) {
          store.delete(key);
        } else {
          put(store, record);
        }
      }
    } catch {
      resolve(false);
    }
  });
}

/**
 * @param {IDBObjectStore} store
 * @param {UploadRecord} record
 */
function put(store, record) {
  try {
    store.put(record);
  } catch {
    // Not every browser can keep a handle; without it the user picks the file again.
    const { handle: _, ...rest } = record;
    store.put(rest);
  }
}
