/** One enhanced file input: what is shown around it, what a person does there, and what its form waits for. */
import { Announcer } from "./announcer.js";
import { Dropzone } from "./dropzone.js";
import { FileList } from "./list.js";
import { part } from "./row.js";
import { matches } from "./files.js";
import { changed, guard, keep, unguard } from "./form-guard.js";
import { Formats } from "./formats.js";
import { describe } from "./item.js";
import { Milestones } from "./milestones.js";
import { signedIn, uploaderOf } from "./page.js";
import { Previews } from "./previews.js";
import { refusal } from "./reasons.js";
import { Selection } from "./selection.js";
import { inSlices } from "../client/slices.js";
import { fill, textsFrom } from "./texts.js";

/** @typedef {import( "./form-guard.js").Field} Field */
/** @typedef {import( "./item.js").Item} Item */
/** @typedef {import( "./files.js").Picked} Picked */
/** @typedef {import( "../client.js").Upload} Upload */

const PAUSE = 250; // ms between two looks at how things stand
const SILENCE = 300; // ms in which a folder may be read without a word
const UNDO = 5000; // ms in which what was taken away can be brought back
const OBSERVED = ["name", "required", "disabled", "multiple", "accept", "form"];
const NO_WEBSOCKET = { code: "unreachable", message: "This browser has no WebSocket" };
/** Bytes; servers and proxies that take more in one POST are rare, and it begins anew at each interruption. */
const MOST_IN_A_POST = 1024 ** 3;

const previews = new Previews();

/**
 * An input does not ask for a file while one is uploaded for it. That it is required is kept where a clone keeps it too.
 * @param {HTMLInputElement} input
 * @param {boolean} satisfied
 */
export function satisfy(input, satisfied) {
  if (satisfied && input.required) {
    input.required = false;
    input.dataset.asyncUploadRequired = "";
    input.setAttribute("aria-required", "true");
  } else if (!satisfied && input.dataset.asyncUploadRequired !== undefined) {
    input.required = true;
    delete input.dataset.asyncUploadRequired;
    input.removeAttribute("aria-required");
  }
}

/** @implements {Field} */
export class UploadField {
  /** Folders that are being walked, and work on many files that is done in slices. */
  #working = 0;
  /** No WebSocket gets through: the input is a plain one. */
  #plain = false;
  /** What was asked of all files last. @type {import( "./list.js").Bulk | ""} */
  #bulk = "";
  #left = false;
  #timer = 0;
  #undoTimer = 0;
  /** What is said beside the button of its form. @type {HTMLElement | null} */
  #beside = null;
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
    this.directory = element.hasAttribute("directory");
    if (this.directory) input.webkitdirectory = true;
    const texts = (this.texts = textsOf(element));
    const formats = (this.formats = new Formats(element.closest("[lang]")?.getAttribute("lang") ?? undefined, texts));
    const label = labelOf(input) || texts.chooseFile;
    if (!labelOf(input)) input.setAttribute("aria-label", label);
    this.zone = new Dropzone(input, {
      texts,
      formats,
      take: (picked) => void this.#take(picked),
      unreadable: (path) => this.#refuse(path, 0, texts.errorUnreadable),
      everywhere: element.hasAttribute("page-drop"),
    });
    this.list = new FileList({
      texts,
      formats,
      previews,
      label,
      id: `${element.id}-async-file`,
      act: (action, item) => this.#act(action, item),
      actOnAll: (action) => this.#actOnAll(action),
    });
    this.announcer = new Announcer();
    this.milestones = new Milestones(this.announcer, texts, formats);
    this.message = part("p", "message", { id: `${element.id}-async-message` });
    this.waiting = part("div", "waiting", {}, part("span", "line", {}, texts.submitWaiting));
    const cancel = part("button", "button", { type: "button" }, texts.submitCancel);
    cancel.addEventListener("click", () => this.#keepForm());
    this.waiting.append(cancel);
    this.removed = part("span", "line");
    const undo = part("button", "button", { type: "button" }, texts.undo);
    undo.addEventListener("click", () => this.#bringBack());
    this.undo = part("div", "undo", {}, this.removed, undo);
    this.undo.hidden = true;
    this.waiting.hidden = this.message.hidden = true;
    this.zone.limits.id = `${element.id}-async-limits`;
    const described = [input.getAttribute("aria-describedby"), this.zone.limits.id, this.message.id];
    input.setAttribute("aria-describedby", described.filter(Boolean).join(" "));
    const parts = [this.zone.element, this.message, this.list.element, this.undo, this.waiting, this.announcer.element];
    for (const each of parts) each.dataset.asyncUpload = "";
    element.append(...parts.slice(1));
    this.url = element.getAttribute("url") || "/ws/uploads/";
    this.selection = new Selection(element, input, {
      url: this.url,
      token: element.getAttribute("field") || "",
      owner: element.getAttribute("owner") || "",
      taker: element.getAttribute("taker") || "",
      isMany: () => this.#many,
      changed: () => this.#change(),
      happened: (type, item, detail) => this.#happened(type, item, detail),
    });
    this.uploader = uploaderOf(this.url);
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
    return this.#take(Array.from(files, (file) => ({ file, path: file.webkitRelativePath || file.name })));
  }

  clear() {
    this.selection.clear();
    this.#tellPerson("");
    this.#change(true);
  }

  // What form-guard.js asks.

  get form() {
    return this.input.form;
  }

  get busy() {
    return this.#working > 0 || this.selection.busy;
  }

  get atStake() {
    return this.busy || this.selection.paused || this.selection.unsent;
  }

  get broken() {
    return !!this.selection.broken;
  }

  settle() {
    this.selection.settle();
  }

  sent() {
    this.selection.sent();
    changed(this);
  }

  restored() {
    void this.selection.restored();
  }

  resume() {
    if (this.selection.paused) this.#actOnAll("resumeAll");
  }

  /** @param {boolean} waiting */
  wait(waiting) {
    if (waiting === !this.waiting.hidden) return;
    this.waiting.hidden = !waiting;
    if (!waiting) return;
    this.#tellPerson("");
    this.announcer.say(this.texts.submitWaiting);
    this.waiting.scrollIntoView({ block: "nearest" });
  }

  /**
   * @param {boolean} focus
   * @param {HTMLElement | null} button
   */
  stop(focus, button) {
    this.#tellPerson(this.texts.submitStopped);
    // A long form may have its button far below the field.
    button?.after((this.#beside = part("span", "beside", {}, this.texts.submitStopped)));
    this.#paint();
    const { broken } = this.selection;
    if (focus && broken) this.list.focus(broken);
  }

  reset() {
    this.#letGo();
    this.selection.clear();
    this.selection.restore();
    this.#tellPerson("");
    this.#change(true);
  }

  // Coming and going.

  #enter() {
    this.uploader.addEventListener("warning", this.#onWarning);
    this.uploader.addEventListener("unreachable", this.#onReach);
    this.zone.connect();
    window.addEventListener("pagehide", this.#onHide);
    this.#observer.observe(this.input, { attributeFilter: OBSERVED });
    guard(this);
    this.#follow();
    this.#change(true);
    const isReachable = "WebSocket" in window && !this.uploader.unreachable;
    if (isReachable) this.zone.takeChosen();
    if (!("WebSocket" in window)) {
      console.warn(`django-resumable-upload: ${NO_WEBSOCKET.message}.`);
      this.#warn(NO_WEBSOCKET);
    }
    if (!isReachable) this.#onLost();
    else void this.selection.offer();
  }

  /**
   * The element is taken out of the page, perhaps only to be put elsewhere. Where its form is still there afterwards, the person took
   * away this one row: its uploads are cancelled. Otherwise the page around it was exchanged: what runs goes on, and is shown again
   * where the same field appears again.
   */
  depart() {
    this.#cancelAll = this.selection.leave();
  }

  comeBack() {
    this.selection.comeBack();
    this.#follow();
  }

  /** It is not coming back. */
  leave() {
    this.#left = true;
    this.#beside?.remove();
    this.#letGo();
    this.#observer.disconnect();
    clearTimeout(this.#timer);
    this.zone.disconnect();
    window.removeEventListener("pagehide", this.#onHide);
    this.uploader.removeEventListener("warning", this.#onWarning);
    this.uploader.removeEventListener("unreachable", this.#onReach);
    if (this.#form?.isConnected) this.#cancelAll();
    unguard(this);
  }

  /** The input may have changed under the hands of the page: another name, required, disabled. */
  #follow() {
    this.#form = this.form;
    this.settle();
    this.#fit();
  }

  /** The input and its zone follow what is chosen. */
  #fit() {
    const { filled } = this.selection;
    this.zone.update(this.#limits, filled);
    satisfy(this.input, this.#working > 0 || filled);
  }

  get #many() {
    return this.directory || this.input.multiple;
  }

  get #limits() {
    const accept = this.input.accept || this.element.getAttribute("accept") || "";
    const [maxSize, minSize, maxFiles, maxTotalSize] = [
      this.element.getAttribute("max-size"),
      this.element.getAttribute("min-size"),
      this.element.getAttribute("max-files"),
      this.element.getAttribute("max-total-size"),
    ].map((each) => Number(each) || 0);
    return { maxSize, minSize, maxFiles, maxTotalSize, accept, directory: this.directory };
  }

  // What a person does.

  /** @param {Picked[] | Promise<Picked[]>} picked */
  async #take(picked) {
    this.#working += 1;
    this.#tellPerson("");
    this.#change();
    const reading = setTimeout(() => this.#tellPerson(this.texts.readingFolder, "note"), SILENCE);
    try {
      const files = Array.isArray(picked) ? picked : await picked;
      if (!this.message.hidden) this.#tellPerson("");
      clearTimeout(reading);
      if (files.length > 1 && !this.#many) this.#tellPerson(this.texts.errorOneOnly);
      else await this.#takeAll(files);
    } catch {
      this.#tellPerson(this.texts.errorFolder);
    } finally {
      clearTimeout(reading);
      this.#working -= 1;
      this.#change(true);
    }
  }

  /**
   * In slices: a browser asks the disk for the size of each file, and thousands would stop the page for a second.
   * @param {Picked[]} all
   */
  async #takeAll(all) {
    const limits = this.#limits;
    /** Files that are there already. @type {string[]} */
    const twice = [];
    /** @param {Picked} picked */
    const take = (picked) => {
      if (this.#left) return false;
      const { name, size } = picked.file;
      if (this.#many && this.selection.has(picked)) {
        twice.push(name);
        return true;
      }
      if (!this.#tellPage("add", picked)) return true;
      const why = refusal(picked.file, limits, this.texts, this.formats, matches) || this.#whyNoMore(size, limits);
      // In a field for one file the new one takes the place of the old one, if it is any better.
      if (!this.#many) {
        this.#letGo();
        this.selection.clear(why ? ({ state }) => state === "refused" : undefined);
      }
      if (why) this.#refuse(name, size, why);
      else this.selection.upload(picked);
      return true;
    };
    await inSlices(all, take, () => this.#change());
    if (this.#left) return;
    const { saidAdded, saidAddedCount, alreadyThere, alreadyThereCount } = this.texts;
    const added = all.length - twice.length;
    if (all.length === 1 && added) this.announcer.say(fill(saidAdded, { name: all[0].file.name }));
    else if (added) this.announcer.say(fill(saidAddedCount, { count: this.formats.count(added) }));
    if (twice.length === 1) this.#tellPerson(fill(alreadyThere, { name: twice[0] }), "note");
    else if (twice.length) this.#tellPerson(fill(alreadyThereCount, { count: this.formats.count(twice.length) }), "note");
  }

  /**
   * Whether another file would be one too many.
   * @param {number} size bytes
   * @param {{maxFiles: number, maxTotalSize: number}} limits
   * @returns {string} a sentence, or ""
   */
  #whyNoMore(size, { maxFiles, maxTotalSize }) {
    if (!this.#many || !(maxFiles || maxTotalSize)) return "";
    const { errorTooMany, errorTotal } = this.texts;
    const there = this.selection.items.filter(({ broken, isOffer }) => !broken && !isOffer);
    if (maxFiles && there.length >= maxFiles) return fill(errorTooMany, { count: this.formats.count(maxFiles) });
    const total = there.reduce((sum, item) => sum + item.size, size);
    return maxTotalSize && total > maxTotalSize ? fill(errorTotal, { limit: this.formats.size(maxTotalSize) }) : "";
  }

  /**
   * @param {string} name
   * @param {number} size
   * @param {string} why
   */
  #refuse(name, size, why) {
    this.selection.refuse(name, size, why);
    this.announcer.say(fill(this.texts.saidFailed, { name, error: why }));
  }

  /**
   * @param {import( "./row.js").Action} action
   * @param {Item} item
   */
  #act(action, item) {
    const { upload } = item;
    if (action === "retry") this.#tellPerson("");
    if (action === "pause") upload?.pause();
    else if (action === "resume") upload?.resume();
    else if (action === "retry") upload?.retry();
    else if (action !== "continue" && action !== "useHere") this.#remove(item);
    else if (upload) signedIn();
    else void this.selection.continue(item);
    this.#change(true);
  }

  /** @param {Item} item */
  #remove(item) {
    const next = this.list.hasFocus(item) ? (this.list.neighbour(item) ?? this.input) : null;
    this.#setAside((other) => other === item, fill(this.texts.saidRemoved, { name: item.name }));
    next?.focus();
  }

  /**
   * @param {((item: Item) => boolean) | undefined} gone
   * @param {string} [words] what the person has done; else they are counted
   */
  #setAside(gone, words) {
    const missed = this.selection.setAside(gone);
    this.#tellPerson("");
    clearTimeout(this.#undoTimer);
    this.undo.hidden = !missed;
    if (!missed && !words) return;
    this.removed.textContent = words ?? fill(this.texts.saidRemovedCount, { count: this.formats.count(missed) });
    this.announcer.say(this.removed.textContent);
    if (missed) this.#undoTimer = setTimeout(() => this.#letGo(), UNDO);
  }

  /** Not while the person is about to press "Undo". */
  #letGo() {
    if (!this.#left && this.undo.matches(":hover, :focus-within")) {
      this.#undoTimer = setTimeout(() => this.#letGo(), UNDO);
      return;
    }
    clearTimeout(this.#undoTimer);
    if (this.undo.contains(document.activeElement)) this.input.focus();
    this.undo.hidden = true;
    this.selection.letGo();
  }

  #onHide = () => this.#letGo();

  #bringBack() {
    clearTimeout(this.#undoTimer);
    this.selection.bringBack();
    this.input.focus();
    this.undo.hidden = true;
    this.#change(true);
  }

  /** The last word counts, even while an earlier one is still being passed on. @param {import( "./list.js").Bulk} action */
  #actOnAll(action) {
    this.#bulk = action;
    if (action === "removeAll" || action === "removeFailed") {
      this.#setAside(action === "removeFailed" ? ({ broken }) => broken : undefined);
      this.input.focus();
    } else {
      void this.#tellAll(action);
    }
    this.#change(true);
  }

  /** @param {import( "./list.js").Bulk} action */
  async #tellAll(action) {
    this.#working += 1;
    await inSlices([...this.selection.items], ({ upload, busy, state, retryable }) => {
      if (action === "pauseAll" && busy) upload?.pause();
      if (action === "resumeAll" && state === "paused") upload?.resume();
      if (action === "retryFailed" && retryable) upload?.retry();
      return this.#bulk === action;
    });
    this.#working -= 1;
    this.#change(true);
  }

  #keepForm() {
    keep(this.form);
    this.announcer.say(this.texts.submitCancelled);
    this.input.focus();
  }

  // What happens.

  /**
   * @param {string} type
   * @param {Item} item
   * @param {object} detail
   */
  #happened(type, item, detail) {
    if (type === "error") {
      const error = describe(item, this.texts, this.formats).note;
      this.announcer.say(fill(this.texts.saidFailed, { name: item.name, error }));
    }
    this.#tellPage(type, { upload: item.upload, ...detail });
  }

  /** @param {Event} event */
  #onWarning = (event) => this.#warn(/** @type {CustomEvent} */ (event).detail);

  /**
   * For the developer, to whom the uploader says it on the console too. What it means for the person is shown to the person.
   * @param {{code: string, message: string}} warning
   */
  #warn({ code, message }) {
    this.#tellPage("warning", { code, message });
  }

  #onReach = () => {
    if (this.uploader.unreachable) this.#onLost();
    else this.#comeBack();
  };

  #onLost() {
    if (this.form) this.#fallBack();
    else this.#tellPerson(this.texts.errorUnreachable);
  }

  /**
   * No upload gets through from here: the input is a plain one again, and holds the files that were chosen. Those that no POST can
   * carry go on waiting.
   */
  #fallBack() {
    if (this.#plain) return;
    this.#plain = this.zone.plain = true;
    const files = new DataTransfer();
    /** @param {Item} item */
    const isTooLarge = ({ size, busy }) => busy && size > MOST_IN_A_POST;
    for (const item of this.selection.items) {
      if (item.file && item.state !== "completed" && !isTooLarge(item)) files.items.add(item.file);
    }
    this.selection.clear((item) => item.state !== "completed" && !item.isOffer && !isTooLarge(item));
    if (this.selection.items.some(isTooLarge)) this.#tellPerson(this.texts.errorUnreachable);
    if (files.files.length) {
      this.input.files = files.files;
      this.#tellPerson(this.texts.withForm, "note");
    }
    this.#change(true);
  }

  /** Uploads get through after all: what the plain input holds is uploaded. */
  #comeBack() {
    this.#tellPerson("");
    if (!this.#plain) return;
    this.#plain = this.zone.plain = false;
    this.zone.takeChosen();
    this.#change(true);
  }

  // Showing it.

  /**
   * @param {string} type
   * @param {object} detail
   * @returns {boolean} false where the page has said no, to `add`
   */
  #tellPage(type, detail) {
    const cancelable = type === "add";
    return this.element.dispatchEvent(new CustomEvent(`async-upload-${type}`, { bubbles: true, cancelable, detail }));
  }

  /**
   * @param {string} text shown under the zone and said; "" takes it away
   * @param {"error" | "note"} [kind]
   */
  #tellPerson(text, kind = "error") {
    this.#beside?.remove();
    this.message.dataset.kind = kind;
    this.message.hidden = !text;
    this.message.textContent = text;
    if (text) this.announcer.say(text);
  }

  /** Something has changed. @param {boolean} [now] by the person's hand: without delay */
  #change(now = false) {
    if (this.#left || (this.#timer && !now)) return;
    clearTimeout(this.#timer);
    this.#timer = 0;
    if (now) this.#look();
    else this.#timer = setTimeout(() => this.#look(), Math.max(0, this.#looked + PAUSE - performance.now()));
  }

  /** How do things stand? Not more than a few times a second: thousands of small files end in that time. */
  #look() {
    this.#timer = 0;
    this.#looked = performance.now();
    this.#fit();
    changed(this);
    // A form is sent from a tab that nobody looks at, too; only painting waits.
    cancelAnimationFrame(this.#frame);
    this.#frame = requestAnimationFrame(() => this.#paint());
  }

  #paint() {
    if (this.#left) return;
    const { items, moved } = this.selection;
    const total = this.list.update(items);
    void inSlices([...moved], (upload) => this.#tellPage("progress", { upload, progress: upload.progress }));
    moved.clear();
    if (total.broken) this.input.setAttribute("aria-invalid", "true");
    else this.input.removeAttribute("aria-invalid");
    this.milestones.pass(items, total);
  }
}

/** @param {HTMLInputElement} input */
function labelOf(input) {
  const label = input.labels?.[0]?.textContent ?? input.getAttribute("aria-label") ?? "";
  return label.trim().replace(/\s*[:：]$/, "");
}

/** @param {HTMLElement} element */
function textsOf(element) {
  try {
    return textsFrom(element.getAttribute("texts"));
  } catch (error) {
    console.error("django-resumable-upload: the texts attribute is not JSON", error);
    return textsFrom(null);
  }
}
