/** The files chosen for one input: their uploads, and with receipts.js and offers.js what is posted and what earlier pages left. */
import { Item } from "./item.js";
import { Offers } from "./offers.js";
import { uploaderOf } from "./page.js";
import { enter, park, placeOf } from "./places.js";
import { Receipts } from "./receipts.js";
import { inSlices } from "../client/slices.js";

/** @typedef {import( "../client.js").Upload} Upload */
/** @typedef {import( "./places.js").Claimant} Claimant */
/** @typedef {import( "./files.js").Picked} Picked */

const UPLOAD_EVENTS = ["progress", "state", "completed", "error"];

/**
 * What tells two files of a user apart, as far as a page can know.
 * @param {File} file
 * @param {string} path in the folder that was chosen
 */
function factsOf({ size, lastModified }, path) {
  return `${path} ${size} ${lastModified}`;
}

/** @implements {Claimant} */
export class Selection {
  /** @type {Item[]} */
  items = [];
  /** Uploads whose progress was not shown since it came. @type {Set<Upload>} */
  moved = new Set();
  /** @type {Map<Upload, Item>} */
  #byUpload = new Map();
  /** By what tells files apart. @type {Map<string, Item>} */
  #files = new Map();
  #count = 0;
  left = false;

  /** @param {import( "./field.js").UploadField} field */
  constructor(field) {
    const { element } = field;
    this.field = field;
    this.url = field.url;
    this.uploader = uploaderOf(field.url);
    /** Of the field, or "". */
    this.token = element.getAttribute("field") || "";
    /** Who looks at the page, an opaque tag, or "". */
    this.owner = element.getAttribute("owner") || "";
    /** Who takes at the server what has no token, or "". */
    this.taker = element.getAttribute("taker") || "";
    this.path = location.pathname;
    this.isNew = true;
    setTimeout(() => (this.isNew = false));
    this.receipts = new Receipts(this);
    this.offers = new Offers(this);
    this.restore();
    this.receive(enter(this));
  }

  get place() {
    return placeOf(this.path, this.field.element, this.field.input);
  }

  /** What stood here before the page was exchanged. @param {Item[]} items */
  receive(items) {
    for (const item of items) if (!this.#byUpload.has(/** @type {Upload} */ (item.upload))) this.put(item);
    if (items.length) this.field.change();
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
    return this.items.some((item) => !item.broken && !item.isOffer);
  }

  /** A receipt is there that no form has taken along. */
  get unsent() {
    return !!this.field.form && this.items.some(({ receipt, isSent }) => receipt && !isSent);
  }

  restore() {
    for (const receipt of this.receipts.initial) {
      const { name = "", size } = receipt.dataset;
      this.put(new Item({ name, size: Number(size) || 0, receipt }));
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
    const { owner, place } = this;
    const options = { name, metadata, field: this.token || undefined, owner, place, remember: !!owner };
    const upload = this.uploader.add(handle ?? file, options);
    const item = new Item({ name, size, file, upload });
    item.facts = factsOf(file, path);
    this.put(item);
  }

  /**
   * @param {string} name
   * @param {number} size
   * @param {string} why a sentence
   */
  refuse(name, size, why) {
    this.put(new Item({ name, size, refusal: why }));
  }

  /** Take files away; those under way are cancelled. @param {(item: Item) => boolean} [gone] all but offers, if not said */
  clear(gone) {
    this.discard(this.takeOut(gone));
  }

  /** Files that were taken out are back where they were. @param {Item[]} items */
  putBack(items) {
    for (const item of items) this.put(item);
    this.items.sort((a, b) => a.order - b.order);
  }

  /**
   * @param {(item: Item) => boolean} [gone] all but offers, if not said
   * @returns {Item[]} what is in the list no longer
   */
  takeOut(gone = ({ isOffer }) => !isOffer) {
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

  /**
   * @param {Item[]} items
   * @param {boolean} [deleting] finished files go on the server, too: it was the user who took them away
   */
  discard(items, deleting = false) {
    const { uploader } = this;
    // Those under way come last, or each would give its turn to one that is about to go.
    void inSlices([...items].reverse(), ({ upload, unfinished, keptKey }) => {
      if (upload?.state === "completed") {
        if (deleting) upload.discard();
        void uploader.forget(upload.key);
      }
      else if (upload && upload.state !== "cancelled") upload.cancel();
      else if (unfinished) void unfinished.discard();
      else if (keptKey) void uploader.forget(keptKey);
    });
  }

  /**
   * The element leaves the page: the uploads go on without it.
   * @returns {() => void} call it when they are not to go on, because the user has taken away this field alone
   */
  leave() {
    this.left = true;
    const items = this.items.filter(({ upload, isSent }) => upload && !isSent);
    for (const { upload, receipt } of items) {
      receipt?.remove();
      if (upload) this.#listen(upload, false);
    }
    const takeBack = park(this, items);
    this.items = this.items.filter((item) => !items.includes(item));
    for (const { upload } of items) if (upload) this.#byUpload.delete(upload);
    return () => this.discard(takeBack());
  }

  /** The element is back: it was only put elsewhere in the page. */
  comeBack() {
    this.left = false;
    this.receive(enter(this, this.offers.keys));
  }

  /** Another field of the page has come that this upload belongs to. @param {string} key */
  release(key) {
    this.offers.release(key);
    this.field.change();
  }

  /** @param {Item} item */
  put(item) {
    const { upload, receipt } = item;
    item.order ||= ++this.#count;
    if (item.facts) this.#files.set(item.facts, item);
    this.items.push(item);
    if (receipt) this.receipts.post(receipt);
    if (!upload) return;
    this.#byUpload.set(upload, item);
    this.#listen(upload, true);
    // It may have completed while no element was there for it.
    if (item.state === "completed") void upload.result.then((result) => this.#complete(item, result));
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
      this.offers.release(upload.key);
      if (type === "completed") this.#complete(item, detail.result);
      this.field.happened(type, item, detail);
    }
    this.field.change();
  };

  /**
   * @param {Item} item
   * @param {import( "../client.js").Result} result
   */
  #complete(item, result) {
    // Outside of a form nothing is posted: the event has the receipt.
    if (item.upload && !this.field.form) void this.uploader.forget(item.upload.key);
    if (!result.receipt || item.receipt || !item.upload || !this.#byUpload.has(item.upload)) return;
    this.receipts.make(item, result.receipt);
  }
}
