/** The row of one file: its picture, its name, how far it is, and what a user can do with it. */
import { Bar, icon, part } from "./parts.js";
import { fill } from "./texts.js";

/** @typedef {import( "./item.js").Item} Item */
/** @typedef {import( "./item.js").View} View */
/** @typedef {Exclude<View["main"], ""> | View["last"]} Action */

/** @type {Readonly<Record<string, import( "./parts.js").IconName>>} */
const ICON_OF = Object.freeze({ completed: "completed", failed: "failed", refused: "failed" });

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
    const previews = this.field.extras?.previews;
    if (this.#drawn || !file || !previews?.suits(file)) return;
    this.#drawn = true;
    const canvas = document.createElement("canvas");
    canvas.hidden = true;
    this.picture.append(canvas);
    previews.draw(file, canvas, () => {
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
