/** The files chosen for one input: their uploads, the receipts of those that are done, and what earlier pages left unfinished. */
import { Item } from "./item.js";
import { ask } from "./csrf.js";
import { uploaderOf } from "./page.js";
import { enter, offers, park, placeIn, placeOf } from "./places.js";
import { forgetSent, noteSent } from "./sent.js";
import { inSlices } from "../client/slices.js";

/** @typedef {import( "../client.js").Upload} Upload */
/** @typedef {import( "./places.js").Claimant} Claimant */
/** @typedef {import( "./files.js").Picked} Picked */

/** What the name of a posted receipt begins with; the name of the input follows. */
export const RECEIPT = "async_upload.";

/** Stands before a receipt whose file was uploaded for another page or object, and which the person has taken over. */
const MOVED = "moved:";

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

/** @implements {Claimant} */
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
  left = false;

  /**
   * @param {HTMLElement} element where receipts are put
   * @param {HTMLInputElement} input
   * @param {object} of
   * @param {string} of.url of the WebSocket
   * @param {string} of.token of the field, or ""
   * @param {string} of.owner who looks at the page, an opaque tag, or ""
   * @param {() => boolean} of.isMany whether it takes several files
   * @param {string} of.taker of what has no token, or "": who takes it at the server
   * @param {() => void} of.changed
   * @param {(type: string, item: Item, detail: object) => void} of.happened `state`, `completed` or `error`
   */
  constructor(element, input, { url, token, owner, taker, isMany, changed, happened }) {
    this.element = element;
    this.input = input;
    this.url = url;
    this.token = token;
    this.owner = owner;
    this.isMany = isMany;
    this.path = location.pathname;
    this.isNew = true;
    setTimeout(() => (this.isNew = false));
    this.taker = taker;
    this.changed = changed;
    this.happened = happened;
    /** Receipts that came with the page, as a reset of the form brings them back. */
    this.initial = receiptsIn(element);
    this.#tokenInput = hiddenIn(element, FIELD)[0] ?? null;
    this.restore();
    this.receive(enter(this));
  }

  get place() {
    return placeOf(this.path, this.element, this.input);
  }

  /** What stood here before the page was exchanged. @param {Item[]} items */
  receive(items) {
    for (const item of items) if (!this.#byUpload.has(/** @type {Upload} */ (item.upload))) this.#add(item);
    if (items.length) this.changed();
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
    return !!this.input.form && this.items.some(({ receipt, isSent }) => receipt && !isSent);
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
    const { owner, place } = this;
    const options = { name, metadata, field: this.token || undefined, owner, place, remember: !!owner };
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

  /** Take files away; those under way are cancelled. @param {(item: Item) => boolean} [gone] all but offers, if not said */
  clear(gone) {
    this.#discard(this.#takeOut(gone));
  }

  /**
   * Take files away so that they can be brought back; those under way pause. What was set aside before is cancelled.
   *
   * @param {(item: Item) => boolean} [gone] all but offers, if not said
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

  /** Files that were set aside are not brought back any more: those under way are cancelled, finished ones deleted. */
  letGo() {
    this.#discard(this.#aside, true);
    this.#aside = [];
  }

  /**
   * @param {(item: Item) => boolean} [gone]
   * @returns {Item[]} what is in the list no longer
   */
  #takeOut(gone = ({ isOffer }) => !isOffer) {
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
   * @param {boolean} [deleting] finished files go on the server, too: it was the person who took them away
   */
  #discard(items, deleting = false) {
    const uploader = uploaderOf(this.url);
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

  /** The receipts go out with the form. */
  sent() {
    const posted = this.items.filter(({ receipt }) => receipt);
    for (const item of posted) item.isSent = true;
    noteSent(posted.flatMap(({ key }) => key || []));
  }

  /** The page is back as it was left: what the server has taken meanwhile goes, the rest can be posted again. */
  async restored() {
    const posted = this.items.filter(({ isSent }) => isSent);
    if (!posted.length) return;
    for (const { receipt } of posted) receipt?.remove();
    const address = new URL(this.input.form?.getAttribute("action") || "", location.href);
    const bare = (/** @type {Item} */ { receipt }) => (receipt?.value ?? "").replace(MOVED, "");
    const usable = (await ask(address, posted.map(bare)))?.usable ?? [];
    for (const item of posted) {
      if (!this.items.includes(item) || !usable.includes(bare(item))) continue;
      item.isSent = false;
      if (item.receipt) this.#post(item.receipt);
    }
    forgetSent(posted.flatMap(({ key, isSent }) => (isSent ? [] : key)));
    this.clear(({ isSent }) => isSent);
    this.changed();
  }

  /**
   * The element leaves the page: the uploads go on without it.
   * @returns {() => void} call it when they are not to go on, because the person has taken away this field alone
   */
  leave() {
    this.left = true;
    this.letGo();
    const items = this.items.filter(({ upload, isSent }) => upload && !isSent);
    for (const { upload, receipt } of items) {
      receipt?.remove();
      if (upload) this.#listen(upload, false);
    }
    const takeBack = park(this, items);
    this.items = this.items.filter((item) => !items.includes(item));
    for (const { upload } of items) if (upload) this.#byUpload.delete(upload);
    return () => this.#discard(takeBack());
  }

  /** The element is back: it was only put elsewhere in the page. */
  comeBack() {
    this.left = false;
    this.receive(enter(this, this.#offers.keys()));
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

  /** What earlier pages left: it goes on by itself where it belongs here and can be read, else the person is asked. */
  async offer() {
    const { own, others } = await offers(this, this.isMany() ? Infinity : 1);
    for (const unfinished of [...own, ...others]) {
      const { key, name, size } = unfinished;
      const place = placeIn(unfinished);
      const isOwn = own.includes(unfinished);
      const elsewhere = isOwn ? undefined : { ...place, title: place.key === this.place.key ? "" : place.title || place.page };
      if (this.#isThere(unfinished) || (isOwn && !this.isMany() && this.filled)) continue;
      const item = new Item({ name, size, unfinished, elsewhere });
      this.#add(item);
      this.#offers.set(key, item);
      if (isOwn && unfinished.canContinue) void this.continue(item, true);
    }
    this.changed();
  }

  /** A form that came back with errors brought its receipt. @param {import( "../client.js").Remembered} finished */
  #isThere({ receipt, key }) {
    const item = this.items.find((each) => each.receipt && each.receipt.value.replace(MOVED, "") === receipt);
    if (!item) return false;
    item.keptKey = key;
    forgetSent([key]);
    return true;
  }

  /** Another field of the page has come that this upload belongs to. @param {string} key */
  release(key) {
    const item = this.#offers.get(key);
    if (item) this.#drop(item);
    this.changed();
  }

  /**
   * @param {Item} item an offer
   * @param {boolean} [byItself] and not because the person has said so
   */
  async continue(item, byItself = false) {
    try {
      const upload = await item.unfinished?.continue();
      if (!upload) return;
      const file = upload.file instanceof File ? upload.file : undefined;
      const next = new Item({ name: upload.name, size: item.size, file, upload });
      if (this.left) park(this, [next]);
      else if (!this.items.includes(item)) this.#discard([next]);
      else {
        this.#drop(item);
        if (byItself && !this.isMany() && this.filled) this.#discard([next]); // the person has chosen another file
        else {
          if (!this.isMany()) this.clear();
          this.#add(next);
        }
      }
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
    // Outside of a form nothing is posted: whoever wants the receipt has it by the event.
    if (item.upload && !this.input.form) void uploaderOf(this.url).forget(item.upload.key);
    if (!result.receipt || item.receipt || !item.upload || !this.#byUpload.has(item.upload)) return;
    item.receipt = document.createElement("input");
    item.receipt.type = "hidden";
    item.receipt.value = (item.upload.field === this.token ? "" : MOVED) + result.receipt;
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
