/**
 * The place to choose, drop and paste files. The page's own file input lies over it, unseen: it is what a label, a keyboard, a
 * screen reader, a validation message and a click reach, so all of these work as with a plain file input.
 */
import { fromInput, fromTransfer, hasFiles } from "./files.js";
import { icon, part } from "./parts.js";
import { fill } from "./texts.js";
import { typesOf } from "./reasons.js";

/** @typedef {import( "./files.js").Picked} Picked */

/** All that are in the page. @type {Set<Dropzone>} */
const zones = new Set();

/** Milliseconds without a `dragover`, which a browser fires at least every 350, after which nothing is dragged any longer. */
const DRAG_ENDS = 500;
let dragging = 0;

/** How an input lies over its zone, for the style. */
const GEOMETRY = ["width", "height", "left", "top"].map((each) => `--async-upload-${each}`);

/** @param {HTMLElement} element is as the page made it */
export function uncover(element) {
  for (const name of GEOMETRY) element.style.removeProperty(name);
  if (!element.getAttribute("style")) element.removeAttribute("style");
}

export class Dropzone {
  #left = 0;
  #top = 0;
  #sizes = new ResizeObserver(() => this.#cover());

  /** @param {import( "./field.js").UploadField} field */
  constructor(field) {
    const { input, texts, element } = field;
    /** What is dropped beside any zone of the page is for this one. */
    this.everywhere = element.hasAttribute("page-drop");
    this.field = field;
    this.input = input;
    /** No longer a zone: the input is seen and used as it is. */
    this.plain = false;
    this.choose = part("span", "choose");
    this.or = part("span", "or");
    this.drop = part("span", "drop", {}, texts.dropNow);
    this.limits = part("span", "limits");
    const words = part("span", "words", {}, this.choose, " ", this.or);
    this.face = part("span", "face", { "aria-hidden": "true" }, icon("upload"), words, this.drop);
    this.element = part("span", "zone", {}, this.face, this.limits);
    input.after(this.element);
    input.addEventListener("change", this.#onChange);
    for (const each of [input, this.element]) {
      each.addEventListener("dragover", this.#onDragOver);
      each.addEventListener("dragleave", this.#onDragLeave);
      each.addEventListener("drop", this.#onDrop);
    }
  }

  /** The input stays where the page has it, and is laid over the zone: the library that made it (React, Vue) finds it there again. */
  #cover() {
    const { input, element } = this;
    const host = /** @type {HTMLElement | null} */ (element.closest("async-upload"));
    if (this.plain || !host) return;
    // Not on the input, whose attributes libraries copy, and not by an attribute, which a strict policy forbids.
    const set = (/** @type {number[]} */ ...pixels) =>
      pixels.forEach((each, index) => host.style.setProperty(GEOMETRY[index], `${each}px`));
    const { offsetWidth, offsetHeight } = element;
    set(offsetWidth, offsetHeight); // first: from right to left its place depends on its width
    const own = input.getBoundingClientRect();
    const zone = element.getBoundingClientRect();
    this.#left += zone.left - own.left;
    this.#top += zone.top - own.top;
    set(offsetWidth, offsetHeight, this.#left, this.#top);
  }

  /**
   * @param {{maxSize: number, accept: string, directory: boolean}} limits in bytes, 0 for none; as an input's `accept`
   * @param {boolean} filled with the one file that it takes: another one replaces that
   */
  update({ maxSize, accept, directory }, filled) {
    const { texts, formats, input } = this.field;
    const many = input.multiple || directory;
    this.choose.textContent = directory ? texts.chooseFolder : many ? texts.chooseFiles : filled ? texts.replaceFile : texts.chooseFile;
    this.element.toggleAttribute("data-filled", filled && !many);
    this.or.textContent = many && !directory ? texts.orDropMany : texts.orDrop;
    const limits = [];
    if (maxSize) limits.push(fill(texts.upTo, { size: formats.size(maxSize) }));
    if (accept) limits.push(fill(texts.allowed, { types: typesOf(accept, texts) }));
    this.limits.textContent = limits.join(" · ");
    this.limits.hidden = !limits.length;
    this.element.toggleAttribute("data-plain", this.plain);
    this.element.toggleAttribute("data-disabled", this.disabled);
    this.#cover();
  }

  get disabled() {
    return this.plain || this.input.matches(":disabled");
  }

  /** In the page from now on. */
  connect() {
    if (!zones.size) {
      document.addEventListener("paste", onPaste);
      window.addEventListener("dragover", onDrag, true);
      window.addEventListener("dragover", onMiss);
      window.addEventListener("drop", onMiss);
    }
    zones.add(this);
    this.#sizes.observe(this.element);
  }

  /** Take what was chosen before this script was there, or what the browser has restored. */
  takeChosen() {
    this.#onChange();
  }

  disconnect() {
    zones.delete(this);
    this.#sizes.disconnect();
    if (zones.size) return;
    document.removeEventListener("paste", onPaste);
    window.removeEventListener("dragover", onDrag, true);
    window.removeEventListener("dragover", onMiss);
    window.removeEventListener("drop", onMiss);
  }

  #onChange = () => {
    if (this.plain || !this.input.files?.length) return;
    const picked = fromInput(this.input);
    // In a task of its own: other listeners to this event find the files in the input.
    setTimeout(() => this.#empty(picked));
    void this.field.take(picked);
  };

  /** @param {DataTransfer} transfer */
  takeFrom(transfer) {
    const { field } = this;
    void field.take(fromTransfer(transfer, (path) => field.refuse(path, 0, field.texts.errorUnreadable)));
  }

  /**
   * What was taken is not posted as well, and the same file can be chosen again.
   * @param {Picked[]} taken
   */
  #empty(taken) {
    if (!this.plain && this.input.files?.[0] === taken[0].file) this.input.value = "";
  }

  /** @param {DragEvent} event */
  #onDragOver = (event) => {
    if (this.plain || !event.dataTransfer || !hasFiles(event.dataTransfer)) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = this.disabled ? "none" : "copy";
    this.element.toggleAttribute("data-over", !this.disabled);
  };

  /** @param {DragEvent} event */
  #onDragLeave = (event) => {
    const to = /** @type {Node | null} */ (event.relatedTarget);
    if (to === this.input || this.element.contains(to)) return;
    this.element.removeAttribute("data-over");
  };

  /** @param {DragEvent} event */
  #onDrop = (event) => {
    this.element.removeAttribute("data-over");
    if (this.plain || !event.dataTransfer || !hasFiles(event.dataTransfer)) return;
    event.preventDefault();
    if (!this.disabled) this.takeFrom(event.dataTransfer);
  };
}

/**
 * Files that are pasted go to the element that has the focus, or to the only one of the page.
 * @param {ClipboardEvent} event
 */
function onPaste(event) {
  if (event.defaultPrevented || !event.clipboardData || !hasFiles(event.clipboardData)) return;
  const target = /** @type {Element} */ (event.target);
  const open = [...zones].filter((zone) => !zone.disabled);
  const focused = open.find((zone) => zone.element.closest("async-upload")?.contains(target));
  const writes = target.closest("input:not([type=file]), textarea, [contenteditable]:not([contenteditable=false])");
  const zone = focused ?? (open.length === 1 && !writes ? open[0] : null);
  if (!zone) return;
  event.preventDefault();
  zone.takeFrom(event.clipboardData);
}

/**
 * Files are dragged over the page: every zone that takes them shows it.
 * @param {DragEvent} event
 */
function onDrag(event) {
  if (!event.dataTransfer || !hasFiles(event.dataTransfer)) return;
  if (!dragging) for (const zone of zones) zone.element.toggleAttribute("data-near", !zone.disabled);
  clearTimeout(dragging);
  dragging = setTimeout(() => {
    dragging = 0;
    for (const zone of zones) {
      zone.element.removeAttribute("data-near");
      zone.element.removeAttribute("data-over");
    }
  }, DRAG_ENDS);
}

/**
 * A file that is dropped beside the zones is for the one that asks for the whole page. Without it a browser would leave the page to
 * show the file, and the uploads would be gone.
 * @param {DragEvent} event
 */
function onMiss(event) {
  if (event.defaultPrevented || !event.dataTransfer || !hasFiles(event.dataTransfer)) return;
  if (/** @type {Element} */ (event.target).closest?.("input[type=file], textarea, [contenteditable]")) return;
  event.preventDefault();
  const zone = [...zones].find(({ everywhere, disabled }) => everywhere && !disabled);
  event.dataTransfer.dropEffect = zone ? "copy" : "none";
  zone?.element.toggleAttribute("data-over", event.type !== "drop");
  if (event.type === "drop") zone?.takeFrom(event.dataTransfer);
}
