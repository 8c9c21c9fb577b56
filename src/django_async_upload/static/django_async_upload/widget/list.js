/**
 * The files of one element. However many there are, only some have a row: those that need the user first, then those under way,
 * then those that wait. What has been uploaded makes room for the next.
 */
import { describe } from "./item.js";
import { part } from "./parts.js";
import { FileRow } from "./row.js";
import { fill } from "./texts.js";

/** @typedef {import( "./item.js").Item} Item */

const ROWS = 25; // at first, and more with each "Show more"; that many are made anew in one painting where files are small

/** @type {Readonly<Record<string, number>>} */
const RANK = Object.freeze({ failed: 0, refused: 0, cancelled: 0, unauthenticated: 0, unfinished: 0, elsewhere: 1, queued: 2, completed: 3 });

/**
 * Which items get a row: at most `most`, the most urgent ones, in the order in which they were chosen.
 * @param {readonly Item[]} items
 * @param {number} most
 * @param {Item | null} pinned stays, because the focus is in its row
 */
export function urgent(items, most, pinned = null) {
  if (items.length <= most) return items;
  /** @type {Item[][]} */
  const ranks = [[], [], [], []];
  for (const item of items) ranks[RANK[item.state] ?? 1].push(item);
  const chosen = new Set(ranks.flat().slice(0, most));
  if (pinned) chosen.add(pinned);
  return items.filter((item) => chosen.has(item));
}

export class FileList {
  /** @type {Map<Item, FileRow>} */
  #rows = new Map();
  #most = ROWS;
  #ids = 0;

  /**
   * @param {import( "./field.js").UploadField} field
   * @param {string} label of its input
   */
  constructor(field, label) {
    const { texts } = (this.field = field);
    /** What a screen reader calls it. */
    this.name = fill(texts.list, { label });
    this.list = part("ul", "files", { "aria-label": this.name, role: "list" });
    this.rest = part("span", "rest");
    const more = part("button", "button", { type: "button" }, texts.showMore);
    more.addEventListener("click", () => {
      this.#most += 2 * ROWS;
      this.update(this.items);
    });
    this.more = part("div", "more", {}, this.rest, more);
    this.element = part("div", "list", {}, this.list, this.more);
    /** @type {readonly Item[]} */
    this.items = [];
  }

  /**
   * Show how things stand. Called at most a few times a second.
   * @param {readonly Item[]} items
   */
  update(items) {
    this.items = items;
    const shown = urgent(items, this.#most, this.#focused());
    const kept = new Set(shown);
    for (const [item, row] of this.#rows) {
      if (kept.has(item)) continue;
      row.element.remove();
      this.#rows.delete(item);
    }
    /** @type {Element | null} */
    let next = this.list.firstElementChild;
    for (const item of shown) {
      let row = this.#rows.get(item);
      if (!row) this.#rows.set(item, (row = new FileRow(item, this.field, `${this.field.element.id}-async-file-${++this.#ids}`)));
      row.update(describe(item, this.field.texts, this.field.formats));
      if (row.element === next) next = next.nextElementSibling;
      else this.list.insertBefore(row.element, next);
      row.draw();
    }
    this.list.hidden = !items.length;
    this.more.hidden = shown.length === items.length;
    const { texts, formats } = this.field;
    this.rest.textContent = fill(texts.notShown, { count: formats.count(items.length - shown.length) });
  }

  /** The button that is to have the focus when the item's own is gone. @param {Item} item */
  neighbour(item) {
    const element = this.#rows.get(item)?.element;
    const other = element?.nextElementSibling ?? element?.previousElementSibling;
    return /** @type {HTMLElement | null | undefined} */ (other?.querySelector("button:not([hidden])"));
  }

  /** @param {Item} item whether the focus is in its row */
  hasFocus(item) {
    return this.#focused() === item;
  }

  /** @param {Item} item */
  focus(item) {
    /** @type {HTMLElement | null | undefined} */ (this.#rows.get(item)?.element.querySelector("button:not([hidden])"))?.focus();
  }

  #focused() {
    const row = document.activeElement?.closest(".async-upload-file");
    if (!row || row.parentElement !== this.list) return null;
    for (const [item, { element }] of this.#rows) if (element === row) return item;
    return null;
  }
}
