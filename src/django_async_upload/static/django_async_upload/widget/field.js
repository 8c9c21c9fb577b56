/** One enhanced file input: what is shown around it, what a user does there, and what its form waits for. */
import { Bulk } from "./bulk.js";
import { labelOf, satisfy } from "./input.js";
import { limitsOf, whyNot } from "./limits.js";
import { loadExtras } from "./extras-loader.js";
import { FileList } from "./list.js";
import { Selection } from "./selection.js";
import { Notices } from "./notices.js";
import { watchReach } from "./fallback.js";
import { Formats } from "./formats.js";
import { inSlices } from "../client/slices.js";
import { changed, guard, unguard } from "./form-guard.js";
import { describe } from "./item.js";
import { fill, textsOf } from "./texts.js";
import { signedIn } from "./page.js";
import { Dropzone } from "./dropzone.js";

/** @typedef {import( "./form-guard.js").Field} Field */
/** @typedef {import( "./item.js").Item} Item */
/** @typedef {import( "./files.js").Picked} Picked */

const PAUSE = 250; // ms between two looks at how things stand
const SILENCE = 300; // ms in which a folder may be read without a word
const OBSERVED = ["name", "required", "disabled", "multiple", "accept", "form"];

/** @implements {Field} */
export class UploadField {
  /** Files that are being taken, folders that are being walked. */
  #taking = 0;
  /** Once they are loaded. @type {import( "./extras.js").Extras | null} */
  extras = null;
  #isExtended = false;
  left = false;
  #presence = new AbortController();
  #timer = 0;
  #looked = 0;
  #frame = 0;
  /** As of the last look: the input itself no longer knows it when it has left the page. @type {HTMLFormElement | null} */
  #form = null;
  #observer = new MutationObserver(() => this.#follow());
  #cancelAll = () => {};

  /**
   * @param {HTMLElement} element `<async-upload>`, with an id
   * @param {HTMLInputElement} input in it
   */
  constructor(element, input) {
    this.element = element;
    this.input = input;
    this.bulk = new Bulk(this);
    this.directory = element.hasAttribute("directory");
    if (this.directory) input.webkitdirectory = true;
    const texts = (this.texts = textsOf(element));
    const formats = (this.formats = new Formats(element.closest("[lang]")?.getAttribute("lang") ?? undefined, texts));
    const label = labelOf(input) || texts.chooseFile;
    if (!labelOf(input)) input.setAttribute("aria-label", label);
    this.zone = new Dropzone(this);
    this.list = new FileList(this, label);
    this.notices = new Notices(this);
    this.zone.limits.id = `${element.id}-async-limits`;
    const described = [input.getAttribute("aria-describedby"), this.zone.limits.id, this.notices.message.id];
    input.setAttribute("aria-describedby", described.filter(Boolean).join(" "));
    const { message, standby, element: said } = this.notices;
    const parts = [this.zone.element, message, this.list.element, standby, said];
    for (const each of parts) each.dataset.asyncUpload = "";
    element.append(...parts.slice(1));
    this.url = element.getAttribute("url") || "/ws/uploads/";
    this.selection = new Selection(this);
    this.#enter();
  }

  // What the element gives to scripts of the page.

  get files() {
    return this.selection.items.flatMap(({ file }) => file ?? []);
  }

  get uploads() {
    return this.selection.items.flatMap(({ upload }) => upload ?? []);
  }

  get value() {
    return this.selection.items.flatMap(({ receipt }) => receipt?.value ?? []).join(",");
  }

  /** @param {Iterable<File>} files */
  add(files) {
    return this.take(Array.from(files, (file) => ({ file, path: file.webkitRelativePath || file.name })));
  }

  clear() {
    this.selection.clear();
    this.notices.show("");
    this.change(true);
  }

  // Called by form-guard.js.

  get form() {
    return this.input.form;
  }

  get #isWorking() {
    return this.#taking > 0 || this.bulk.isWorking;
  }

  get busy() {
    return this.#isWorking || this.selection.busy;
  }

  get atStake() {
    return this.busy || this.selection.paused || this.selection.unsent;
  }

  get broken() {
    return !!this.selection.broken;
  }

  settle() {
    this.selection.receipts.settle();
  }

  sent() {
    this.selection.receipts.sent();
    changed(this);
  }

  restored() {
    void this.selection.receipts.restored();
  }

  resume() {
    if (this.selection.paused) this.bulk.act("resumeAll");
  }

  /** @param {boolean} waiting */
  wait(waiting) {
    this.notices.wait(waiting);
  }

  /**
   * @param {boolean} focus
   * @param {HTMLElement | null} button
   */
  stop(focus, button) {
    this.notices.stop(button);
    this.#paint();
    const { broken } = this.selection;
    if (focus && broken) this.list.focus(broken);
  }

  reset() {
    this.extras?.undo.letGo();
    this.selection.clear();
    this.selection.restore();
    this.notices.show("");
    this.change(true);
  }

  // Coming and going.

  #enter() {
    this.zone.connect();
    const { signal } = this.#presence;
    window.addEventListener("pagehide", () => this.extras?.undo.letGo(), { signal });
    this.#observer.observe(this.input, { attributeFilter: OBSERVED });
    guard(this);
    this.#follow();
    this.change(true);
    watchReach(this, signal);
  }

  /**
   * The element is taken out of the page, perhaps only to be put elsewhere. Where its form is still there afterwards, the user took
   * away this one row: its uploads are cancelled. Otherwise the page around it was exchanged: what runs goes on, and is shown again
   * where the same field appears again.
   */
  depart() {
    this.extras?.undo.discard();
    this.#cancelAll = this.selection.leave();
  }

  comeBack() {
    this.selection.comeBack();
    this.#follow();
  }

  /** It is not coming back. */
  leave() {
    this.left = true;
    this.notices.clearBeside();
    this.extras?.undo.letGo();
    this.#observer.disconnect();
    clearTimeout(this.#timer);
    this.zone.disconnect();
    this.#presence.abort();
    if (this.#form?.isConnected) this.#cancelAll();
    unguard(this);
  }

  /** The page may have changed the input: another name, required, disabled. */
  #follow() {
    this.#form = this.form;
    this.settle();
    this.#fit();
  }

  /** The input and its zone follow what is chosen. */
  #fit() {
    const { filled } = this.selection;
    this.zone.update(limitsOf(this), filled);
    satisfy(this.input, this.#isWorking || filled);
  }

  get isMany() {
    return this.directory || this.input.multiple;
  }

  // What a user does.

  /** @param {Picked[] | Promise<Picked[]>} picked */
  async take(picked) {
    this.#taking += 1;
    this.notices.show("");
    this.change();
    const reading = setTimeout(() => this.notices.show(this.texts.readingFolder, "note"), SILENCE);
    try {
      const files = Array.isArray(picked) ? picked : await picked;
      if (!this.notices.message.hidden) this.notices.show("");
      clearTimeout(reading);
      if (files.length > 1 && !this.isMany) this.notices.show(this.texts.errorOneOnly);
      else await this.#takeAll(files);
    } catch {
      this.notices.show(this.texts.errorFolder);
    } finally {
      clearTimeout(reading);
      this.#taking -= 1;
      this.change(true);
    }
  }

  /**
   * In slices: a browser asks the disk for the size of each file, and thousands would stop the page for a second.
   * @param {Picked[]} all
   */
  async #takeAll(all) {
    const limits = limitsOf(this);
    /** Files that are there already. @type {string[]} */
    const twice = [];
    /** @param {Picked} picked */
    const take = (picked) => {
      if (this.left) return false;
      const { name, size } = picked.file;
      if (this.isMany && this.selection.has(picked)) {
        twice.push(name);
        return true;
      }
      if (!this.tellPage("add", picked)) return true;
      const why = whyNot(picked.file, this, limits);
      // In a field for one file the new one takes the place of the old one, if it is any better.
      if (!this.isMany) {
        this.extras?.undo.letGo();
        this.selection.clear(why ? ({ state }) => state === "refused" : undefined);
      }
      if (why) this.refuse(name, size, why);
      else this.selection.upload(picked);
      return true;
    };
    await inSlices(all, take, () => this.change());
    if (this.left) return;
    const { saidAdded, saidAddedCount, alreadyThere, alreadyThereCount } = this.texts;
    const added = all.length - twice.length;
    if (all.length === 1 && added) this.notices.say(fill(saidAdded, { name: all[0].file.name }));
    else if (added) this.notices.say(fill(saidAddedCount, { count: this.formats.count(added) }));
    if (twice.length === 1) this.notices.show(fill(alreadyThere, { name: twice[0] }), "note");
    else if (twice.length) this.notices.show(fill(alreadyThereCount, { count: this.formats.count(twice.length) }), "note");
  }

  /**
   * @param {string} name
   * @param {number} size
   * @param {string} why
   */
  refuse(name, size, why) {
    this.selection.refuse(name, size, why);
    this.notices.say(fill(this.texts.saidFailed, { name, error: why }));
  }

  /**
   * @param {import( "./row.js").Action} action
   * @param {Item} item
   */
  act(action, item) {
    const { upload } = item;
    if (action === "retry") this.notices.show("");
    if (action === "pause") upload?.pause();
    else if (action === "resume") upload?.resume();
    else if (action === "retry") upload?.retry();
    else if (action !== "continue" && action !== "useHere") this.#remove(item);
    else if (upload) signedIn();
    else void this.selection.offers.continue(item);
    this.change(true);
  }

  /** @param {Item} item */
  #remove(item) {
    const next = this.list.hasFocus(item) ? (this.list.neighbour(item) ?? this.input) : null;
    this.setAside((other) => other === item, fill(this.texts.saidRemoved, { name: item.name }));
    next?.focus();
  }

  /**
   * Take files away; without the extras, for good.
   * @param {((item: Item) => boolean) | undefined} gone all but offers, if not said
   * @param {string} [words] what the user has done
   */
  setAside(gone, words) {
    if (this.extras) return this.extras.undo.setAside(gone, words);
    this.selection.discard(this.selection.takeOut(gone), true);
    if (words) this.notices.say(words);
  }

  // What happens.

  /**
   * @param {string} type
   * @param {Item} item
   * @param {object} detail
   */
  happened(type, item, detail) {
    if (type === "error") {
      const error = describe(item, this.texts, this.formats).note;
      this.notices.say(fill(this.texts.saidFailed, { name: item.name, error }));
    }
    this.tellPage(type, { upload: item.upload, ...detail });
  }

  // Showing it.

  /**
   * @param {string} type
   * @param {object} detail
   * @returns {boolean} false where the page has said no, to `add`
   */
  tellPage(type, detail) {
    const cancelable = type === "add";
    return this.element.dispatchEvent(new CustomEvent(`async-upload-${type}`, { bubbles: true, cancelable, detail }));
  }

  /** Something has changed. @param {boolean} [now] by the user's hand: without delay */
  change(now = false) {
    if (this.left || (this.#timer && !now)) return;
    clearTimeout(this.#timer);
    this.#timer = 0;
    if (now) this.#look();
    else this.#timer = setTimeout(() => this.#look(), Math.max(0, this.#looked + PAUSE - performance.now()));
  }

  /** See how things stand, not more than a few times a second: thousands of small files end in that time. */
  #look() {
    this.#timer = 0;
    this.#looked = performance.now();
    this.#fit();
    changed(this);
    // A form is sent from a tab in the background, too; only painting waits.
    cancelAnimationFrame(this.#frame);
    this.#frame = requestAnimationFrame(() => this.#paint());
  }

  #paint() {
    if (this.left) return;
    const { items, moved, broken } = this.selection;
    if (items.length && !this.#isExtended) void this.#extend();
    this.list.update(items);
    this.extras?.update(items);
    void inSlices([...moved], (upload) => this.tellPage("progress", { upload, progress: upload.progress }));
    moved.clear();
    if (broken) this.input.setAttribute("aria-invalid", "true");
    else this.input.removeAttribute("aria-invalid");
  }

  /** Add what the field can do without: its files are uploaded and have their rows meanwhile. */
  async #extend() {
    this.#isExtended = true;
    const Extras = await loadExtras();
    if (this.left) return;
    this.extras = new Extras(this);
    this.change(true);
  }
}
