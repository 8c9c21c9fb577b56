/** What the user took away a moment ago, and the line with which it can be brought back. */
import { inSlices } from "../client/slices.js";
import { part } from "./parts.js";
import { fill } from "./texts.js";

/** @typedef {import( "./item.js").Item} Item */

const TIME = 5000; // ms in which what was taken away can be brought back

export class Undo {
  /** @type {Item[]} */
  #aside = [];
  #timer = 0;
  #words = part("span", "line");
  #field;

  /** @param {import( "./field.js").UploadField} field */
  constructor(field) {
    this.#field = field;
    const button = part("button", "button", { type: "button" }, field.texts.undo);
    button.addEventListener("click", () => this.#bringBack());
    this.element = part("div", "undo", {}, this.#words, button);
    this.element.hidden = true;
  }

  /**
   * Take files away so that they can be brought back; those under way pause. What was set aside before is cancelled.
   * @param {((item: Item) => boolean) | undefined} gone all but offers, if not said
   * @param {string} [words] what the user has done; else the files that were not broken are counted
   */
  setAside(gone, words) {
    const { selection, notices, texts, formats } = this.#field;
    this.discard();
    const aside = (this.#aside = selection.takeOut(gone));
    const missed = aside.filter(({ broken }) => !broken).length;
    if (!missed) this.discard();
    // Those under way come last, or each would give its turn to one that is about to pause.
    void inSlices([...aside].reverse(), (item) => {
      if (this.#aside !== aside) return false;
      if (item.busy) {
        item.pausedAside = true;
        item.upload?.pause();
      }
      return true;
    });
    notices.show("");
    clearTimeout(this.#timer);
    this.element.hidden = !missed;
    if (!missed && !words) return;
    this.#words.textContent = words ?? fill(texts.saidRemovedCount, { count: formats.count(missed) });
    notices.say(this.#words.textContent);
    if (missed) this.#timer = setTimeout(() => this.letGo(), TIME);
  }

  /** They are back where they were, and go on. */
  #bringBack() {
    clearTimeout(this.#timer);
    const { selection, input } = this.#field;
    const items = this.#aside;
    this.#aside = [];
    selection.putBack(items);
    void inSlices(items, (item) => {
      if (item.pausedAside && item.state === "paused") item.upload?.resume();
      item.pausedAside = false;
    });
    input.focus();
    this.element.hidden = true;
    this.#field.change(true);
  }

  /** They are not brought back any more. Not while the user is about to press "Undo". */
  letGo() {
    if (!this.#field.left && this.element.matches(":hover, :focus-within")) {
      this.#timer = setTimeout(() => this.letGo(), TIME);
      return;
    }
    clearTimeout(this.#timer);
    if (this.element.contains(document.activeElement)) this.#field.input.focus();
    this.element.hidden = true;
    this.discard();
  }

  /** Those under way are cancelled, finished ones deleted. */
  discard() {
    this.#field.selection.discard(this.#aside, true);
    this.#aside = [];
  }
}
