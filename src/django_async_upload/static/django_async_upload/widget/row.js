/** The row of one file: its picture, its name, how far it is, and what a person can do with it. */
import { hasPreview } from "./previews.js";
import { fill } from "./texts.js";

/** @typedef {import( "./item.js").Item} Item */
/** @typedef {import( "./item.js").View} View */
/** @typedef {Exclude<View["main"], ""> | View["last"]} Action */

/** Drawn with strokes in a box of 24; in the page's own colour. */
const ICONS = {
  pause: "M9 6v12M15 6v12",
  resume: "M8 5.5v13l11-6.5z",
  continue: "M8 5.5v13l11-6.5z",
  useHere: "M8 5.5v13l11-6.5z",
  retry: "M19 12a7 7 0 1 1-2.1-5M19 4v4h-4",
  cancel: "M7 7l10 10M17 7L7 17",
  remove: "M7 7l10 10M17 7L7 17",
  discard: "M7 7l10 10M17 7L7 17",
  file: "M7 3.5h7l4 4v13H7zM14 3.5v4h4",
  completed: "M5 12.5l5 5L19 7.5",
  failed: "M12 3.5l9 16H3zM12 10v4.5M12 17v.2",
  upload: "M12 16V5M7.5 9.5L12 5l4.5 4.5M5 19h14",
};

/** @type {Readonly<Record<string, keyof typeof ICONS>>} */
const ICON_OF = Object.freeze({ completed: "completed", failed: "failed", refused: "failed" });

/** An icon that nobody reads aloud. @param {keyof typeof ICONS} name */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("class", `async-upload-icon async-upload-icon-${name}`);
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/**
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {string} name the part after `async-upload-` in its class
 * @param {Record<string, string>} [attributes]
 * @param {(Node | string)[]} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function part(tag, name, attributes = {}, ...children) {
  const element = document.createElement(tag);
  element.className = `async-upload-${name}`;
  for (const [attribute, value] of Object.entries(attributes)) element.setAttribute(attribute, value);
  element.append(...children);
  return element;
}

/** Characters of a name that stay in sight behind its middle, beside its extension. */
const TAIL = 4;

/**
 * A name in two parts: where there is no room the first is cut at its end, so that the extension stays.
 * @param {string} name
 * @returns {HTMLElement[]}
 */
function named(name) {
  const characters = [...name];
  const extension = /\.[^.\s]{1,8}$/.exec(name)?.[0].length ?? 0;
  const tail = characters.slice(-(extension + TAIL)).join("");
  const stem = name.slice(0, name.length - tail.length);
  return stem ? [part("span", "stem", {}, stem), part("span", "tail", {}, tail)] : [part("span", "tail", {}, tail)];
}

/** @param {import( "./places.js").Place | null} place of another page @returns {HTMLElement[]} a link there */
function linkTo(place) {
  // What is remembered is text: only an address of this site becomes a link.
  const address = place?.title && URL.canParse(place.page) ? new URL(place.page) : null;
  return address?.origin === location.origin ? [part("a", "link", { href: address.href, dir: "auto" }, place?.title ?? "")] : [];
}

/** A bar that says how far something is. */
export class Bar {
  /** @param {string} label */
  constructor(label) {
    this.fill = part("span", "fill");
    const attributes = { role: "progressbar", "aria-label": label, "aria-valuemin": "0", "aria-valuemax": "100" };
    this.element = part("span", "bar", attributes, this.fill);
    this.shown = "";
  }

  /**
   * @param {number} fraction 0 to 1
   * @param {string} value the same in words
   */
  show(fraction, value) {
    const percent = String(Math.floor(fraction * 100));
    // Not through the `style` attribute, which a strict policy forbids.
    this.fill.style.setProperty("--async-upload-fraction", fraction.toFixed(3));
    if (this.shown === percent + value) return;
    this.shown = percent + value;
    this.element.setAttribute("aria-valuenow", percent);
    this.element.setAttribute("aria-valuetext", value);
  }
}

export class FileRow {
  /** @type {View | null} */
  #shown = null;
  #drawn = false;
  #pictured = false;

  /**
   * @param {Item} item
   * @param {import( "./field.js").UploadField} field
   * @param {string} id unique in the page
   */
  constructor(item, field, id) {
    this.item = item;
    this.field = field;
    // By its own direction: a name in Latin letters reads from left to right in an Arabic page, too.
    this.name = part("span", "name", { title: item.name, dir: "auto" }, ...named(item.name));
    this.note = part("span", "note", { id });
    this.bar = new Bar(item.name);
    this.main = part("button", "button", { type: "button", "aria-describedby": id });
    this.last = part("button", "button async-upload-quiet", { type: "button", "aria-describedby": id });
    this.icon = icon("file");
    this.picture = part("span", "picture", { "aria-hidden": "true" }, this.icon);
    this.signIn = part("a", "link", { target: "_blank", rel: "noopener", href: location.href }, field.texts.signIn);
    this.main.addEventListener("click", () => this.#shown?.main && field.act(this.#shown.main, item));
    this.last.addEventListener("click", () => this.#shown && field.act(this.#shown.last, item));
    const body = part("span", "body", {}, this.name, this.bar.element, this.note, this.signIn, ...linkTo(item.elsewhere));
    const actions = part("span", "actions", {}, this.main, this.last);
    this.element = part("li", "file", {}, this.picture, body, actions);
  }

  /** Writes only what has changed. @param {View} view */
  update(view) {
    const shown = this.#shown;
    this.#shown = view;
    if (view.fraction !== null) this.bar.show(view.fraction, view.value);
    if (shown?.note !== view.note) this.note.textContent = view.note;
    if (shown?.state === view.state && shown.main === view.main && shown.last === view.last) return;
    this.element.dataset.state = view.state;
    this.#mark(view.state);
    this.bar.element.hidden = view.fraction === null;
    this.signIn.hidden = !view.signIn;
    this.#label(this.last, view.last);
    if (view.main) this.#label(this.main, view.main);
    else if (this.main === document.activeElement) this.last.focus();
    this.main.hidden = !view.main;
  }

  /** Once the row is in the page. */
  draw() {
    const { file } = this.item;
    if (this.#drawn || !file || !hasPreview(file)) return;
    this.#drawn = true;
    const canvas = document.createElement("canvas");
    canvas.hidden = true;
    this.picture.append(canvas);
    this.field.previews.draw(file, canvas, () => {
      this.#pictured = true;
      canvas.hidden = false;
      this.#mark(this.#shown?.state ?? "");
    });
  }

  /** Beside a picture an icon says only what has become of the file. @param {string} state */
  #mark(state) {
    const mark = icon(ICON_OF[state] ?? "file");
    mark.classList.toggle("async-upload-badge", this.#pictured);
    mark.toggleAttribute("hidden", this.#pictured && !ICON_OF[state]);
    this.icon.replaceWith(mark);
    this.icon = mark;
  }

  /**
   * @param {HTMLButtonElement} button
   * @param {Action} action
   */
  #label(button, action) {
    const { item } = this;
    const { texts } = this.field;
    const inWords = action === "retry" || action === "continue" || action === "useHere";
    button.replaceChildren(icon(action), ...(inWords ? [texts[action]] : []));
    button.dataset.action = action;
    button.title = texts[action];
    button.setAttribute("aria-label", fill(texts.actionOn, { action: texts[action], name: item.name }));
  }
}
