/** The files chosen for one input: their uploads, the receipts of those that are done, and what earlier pages left unfinished. */
import { Item } from "./item.js";
import { adopt, leave, offers, uploaderOf } from "./page.js";
import { inSlices } from "../client/slices.js";

/** @typedef {import( "../client.js").Upload} Upload */
/** @typedef {import( "./files.js").Picked} Picked */

/** What the name of a posted receipt begins with; the name of the input follows. */
export const RECEIPT = "async_upload.";

const UPLOAD_EVENTS = ["progress", "state", "completed", "error"];

/** The same for the field's token, which is posted beside receipts. */
const FIELD = "async_upload_field.";

/** @param {HTMLElement} element @returns {HTMLInputElement[]} the receipts in it */
export function receiptsIn(element) {
  return hiddenIn(element, RECEIPT);
}

/** @param {HTMLElement} element @returns {HTMLInputElement[]} what is posted from it beside the file: receipts and the token */
export function postedIn(element) {
  return [...receiptsIn(element), ...hiddenIn(element, FIELD)];
}

/**
 * @param {HTMLElement} element
 * @param {string} prefix
 * @returns {HTMLInputElement[]}
 */
function hiddenIn(element, prefix) {
  return [...element.querySelectorAll(/** @type {"input"} */ (`input[type=hidden][name^="${prefix}"]`))];
}

/**
 * What tells two files of a person apart, as far as a page can know.
 * @param {File} file
 * @param {string} path in the folder that was chosen
 */
function factsOf({ size, lastModified }, path) {
  return `${path} ${size} ${lastModified}`;
}

export class Selection {
  /** @type {Item[]} */
  items = [];
  /** Uploads whose progress nobody has asked for since it came. @type {Set<Upload>} */
  moved = new Set();
  /** Posts the token, from the first receipt on. @type {HTMLInputElement | null} */
  #tokenInput = null;
  /** @type {Map<Upload, Item>} */
  #byUpload = new Map();
  /** By what tells files apart. @type {Map<string, Item>} */
  #files = new Map();
  /** Taken away a moment ago, and perhaps brought back. @type {Item[]} */
  #aside = [];
  #count = 0;
  /** Unfinished ones by their upload's key. @type {Map<string, Item>} */
  #offers = new Map();

  /**
   * @param {HTMLElement} element where receipts are put
   * @param {HTMLInputElement} input
   * @param {object} of
   * @param {string} of.url of the WebSocket
   * @param {string} of.token of the field, or ""
   * @param {string} of.taker of what has no token, or "": who takes it at the server
   * @param {() => void} of.changed
   * @param {(type: string, item: Item, detail: object) => void} of.happened `state`, `completed` or `error`
   */
  constructor(element, input, { url, token, taker, changed, happened }) {
    this.element = element;
    this.input = input;
    this.url = url;
    this.token = token;
    this.taker = taker;
    this.changed = changed;
    this.happened = happened;
    /** Receipts that came with the page, as a reset of the form brings them back. */
    this.initial = receiptsIn(element);
    this.#tokenInput = hiddenIn(element, FIELD)[0] ?? null;
    this.restore();
    for (const item of adopt(url, token)) this.#add(item);
  }

  get busy() {
    return this.items.some((item) => item.busy);
  }

  get broken() {
    return this.items.find((item) => item.broken);
  }

  get paused() {
    return this.items.some((item) => item.state === "paused");
  }

  /** A file is there, or on its way. */
  get filled() {
    return this.items.some((item) => !item.broken && item.state !== "unfinished");
  }

  restore() {
    for (const receipt of this.initial) {
      const { name = "", size } = receipt.dataset;
      this.#add(new Item({ name, size: Number(size) || 0, receipt }));
    }
  }

  /** Whether that file is there already, and arrives or has arrived. @param {Picked} picked */
  has({ file, path }) {
    return this.#files.get(factsOf(file, path))?.broken === false;
  }

  /** @param {Picked} picked */
  upload({ file, path, handle }) {
    const { name, size } = file;
    const metadata = { ...(path === name ? {} : { path }), ...(this.taker ? { taker: this.taker } : {}) };
    const options = { name, metadata, field: this.token || undefined };
    const upload = uploaderOf(this.url).add(handle ?? file, options);
    const item = new Item({ name, size, file, upload });
    item.facts = factsOf(file, path);
    this.#add(item);
  }

  /**
   * @param {string} name
   * @param {number} size
   * @param {string} why a sentence
   */
  refuse(name, size, why) {
    this.#add(new Item({ name, size, refusal: why }));
  }

  /** Take files away; those under way are cancelled. @param {(item: Item) => boolean} [gone] all but unfinished ones, if not said */
  clear(gone) {
    this.#discard(this.#takeOut(gone));
  }

  /**
   * Take files away so that they can be brought back; those under way pause. What was set aside before is cancelled.
   *
   * @param {(item: Item) => boolean} [gone] all but unfinished ones, if not said
   * @returns {number} how many of them somebody could miss
   */
  setAside(gone) {
    this.letGo();
    const aside = (this.#aside = this.#takeOut(gone));
    const missed = aside.filter(({ broken }) => !broken).length;
    if (!missed) this.letGo();
    // Those under way come last, or each would give its turn to one that is about to pause.
    void inSlices([...aside].reverse(), (item) => {
      if (this.#aside !== aside) return false;
      if (item.busy) {
        item.pausedAside = true;
        item.upload?.pause();
      }
      return true;
    });
    return missed;
  }

  /** Files that were set aside are back where they were, and go on. */
  bringBack() {
    const items = this.#aside;
    this.#aside = [];
    for (const item of items) this.#add(item);
    this.items.sort((a, b) => a.order - b.order);
    void inSlices(items, (item) => {
      if (item.pausedAside && item.state === "paused") item.upload?.resume();
      item.pausedAside = false;
    });
  }

  /** Files that were set aside are not brought back any more: those under way are cancelled. */
  letGo() {
    this.#discard(this.#aside);
    this.#aside = [];
  }

  /**
   * @param {(item: Item) => boolean} [gone]
   * @returns {Item[]} what is in the list no longer
   */
  #takeOut(gone = ({ state }) => state !== "unfinished") {
    /** @type {Item[]} */
    const removed = [];
    const kept = [];
    for (const item of this.items) {
      if (!gone(item)) {
        kept.push(item);
        continue;
      }
      removed.push(item);
      this.#files.delete(item.facts);
      item.receipt?.remove(); // now: the form may be sent at any time
      if (!item.upload) continue;
      this.#listen(item.upload, false);
      this.#byUpload.delete(item.upload);
      this.moved.delete(item.upload);
    }
    this.items = kept;
    return removed;
  }

  /** @param {Item[]} items */
  #discard(items) {
    // Those under way come last, or each would give its turn to one that is about to go.
    void inSlices([...items].reverse(), ({ upload, unfinished }) => {
      if (!upload) void unfinished?.discard();
      else if (upload.state !== "completed" && upload.state !== "cancelled") upload.cancel();
    });
  }

  /** Let the uploads go on without an element; it may come back for them. */
  abandon() {
    this.letGo();
    const items = this.items.filter(({ upload }) => upload);
    for (const { upload, receipt } of items) {
      receipt?.remove();
      if (upload) this.#listen(upload, false);
    }
    leave(this.url, this.token, items);
    this.items = [];
  }

  /** Receipts follow their input: its name, its form, whether it is disabled. */
  settle() {
    for (const { receipt } of this.items) if (receipt) this.#address(receipt, RECEIPT);
    if (this.#tokenInput) this.#address(this.#tokenInput, FIELD);
  }

  /**
   * @param {HTMLInputElement} hidden
   * @param {string} prefix
   */
  #address(hidden, prefix) {
    const form = this.input.getAttribute("form");
    hidden.name = prefix + this.input.name;
    hidden.disabled = this.input.disabled;
    if (form !== null) hidden.setAttribute("form", form);
  }

  /**
   * What an earlier page did not finish: it goes on by itself where the file can be read, else the person is asked for it.
   * @param {number} most
   */
  async offer(most) {
    for (const unfinished of await offers(this.url, this.token, most)) {
      const { name, size } = unfinished;
      const item = new Item({ name, size, unfinished });
      this.#add(item);
      this.#offers.set(unfinished.key, item);
      if (unfinished.canContinue) void this.continue(item);
    }
    this.changed();
  }

  /** @param {Item} item an unfinished one */
  async continue(item) {
    try {
      const upload = await item.unfinished?.continue();
      if (!upload || !this.items.includes(item)) return upload?.cancel();
      this.#drop(item);
      const file = upload.file instanceof File ? upload.file : undefined;
      this.#add(new Item({ name: upload.name, size: item.size, file, upload }));
    } catch {
      // The file is not there any more, or may not be read without a click: it stays on offer.
    }
    this.changed();
  }

  /** @param {Item} item */
  #add(item) {
    const { upload, receipt } = item;
    item.order ||= ++this.#count;
    if (item.facts) this.#files.set(item.facts, item);
    this.items.push(item);
    if (receipt) this.#post(receipt);
    if (!upload) return;
    this.#byUpload.set(upload, item);
    this.#listen(upload, true);
    // It may have completed while no element was there for it.
    if (item.state === "completed") void upload.result.then((result) => this.#complete(item, result));
  }

  /** @param {Item} item */
  #drop(item) {
    this.items = this.items.filter((other) => other !== item);
    this.#offers.delete(item.unfinished?.key ?? "");
  }

  /**
   * @param {Upload} upload
   * @param {boolean} on
   */
  #listen(upload, on) {
    for (const type of UPLOAD_EVENTS) {
      if (on) upload.addEventListener(type, this.#onUpload);
      else upload.removeEventListener(type, this.#onUpload);
    }
  }

  /** @param {Event} event */
  #onUpload = (event) => {
    const upload = /** @type {Upload} */ (event.target);
    const item = this.#byUpload.get(upload);
    if (!item) return;
    const { type, detail } = /** @type {CustomEvent} */ (event);
    if (type === "progress") this.moved.add(upload);
    else {
      // A file that was chosen again went on where an earlier page had stopped: that is no longer on offer.
      const stale = this.#offers.get(upload.key);
      if (stale) this.#drop(stale);
      if (type === "completed") this.#complete(item, detail.result);
      this.happened(type, item, detail);
    }
    this.changed();
  };

  /**
   * @param {Item} item
   * @param {import( "../client.js").Result} result
   */
  #complete(item, result) {
    if (!result.receipt || item.receipt || !item.upload || !this.#byUpload.has(item.upload)) return;
    item.receipt = document.createElement("input");
    item.receipt.type = "hidden";
    item.receipt.value = result.receipt;
    item.receipt.dataset.name = item.name;
    item.receipt.dataset.size = String(item.size);
    this.#post(item.receipt);
  }

  /** @param {HTMLInputElement} receipt */
  #post(receipt) {
    this.#address(receipt, RECEIPT);
    this.element.append(receipt);
    if (this.token && !this.#tokenInput) {
      this.#tokenInput = document.createElement("input");
      this.#tokenInput.type = "hidden";
      this.#tokenInput.value = this.token;
      this.#address(this.#tokenInput, FIELD);
      this.element.append(this.#tokenInput);
    }
  }
}
