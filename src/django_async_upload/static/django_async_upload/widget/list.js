/**
 * The files of one element, and above them a line that sums them up. However many there are, only some have a row: those that
 * need the person first, then those under way, then those that wait. What has been uploaded makes room for the next.
 */
import { Bar, FileRow, part } from "./row.js";
import { describe } from "./item.js";
import { Forecast, SMALL } from "../client/forecast.js";
import { Rate } from "../client/rate.js";
import { fill, join } from "./texts.js";

/** @typedef {import( "./item.js").Item} Item */
/** @typedef {"pauseAll" | "resumeAll" | "retryFailed" | "removeFailed" | "removeAll"} Bulk */

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

/**
 * @param {readonly Item[]} items
 * @returns {{count: number, done: number, broken: number, busy: number, paused: number, retryable: number, size: number, arrived: number,
 *   amounts: import( "../client/forecast.js").Amounts}}
 */
export function sum(items) {
  const amounts = { files: 0, filesDone: 0, bytes: 0, bytesDone: 0 };
  const total = { count: 0, done: 0, broken: 0, busy: 0, paused: 0, retryable: 0, size: 0, arrived: 0, amounts };
  for (const item of items) {
    if (item.isOffer) continue;
    total.count += 1;
    if (item.state === "completed") total.done += 1;
    if (item.state === "paused") total.paused += 1;
    if (item.busy) total.busy += 1;
    if (item.broken) {
      total.broken += 1;
      if (item.retryable) total.retryable += 1;
    } else {
      const { size, arrived } = item;
      total.size += size;
      total.arrived += arrived;
      if (size > SMALL) {
        amounts.bytes += size;
        amounts.bytesDone += arrived;
      } else {
        amounts.files += 1;
        if (item.state === "completed") amounts.filesDone += 1;
      }
    }
  }
  return total;
}

export class FileList {
  /** @type {Map<Item, FileRow>} */
  #rows = new Map();
  #most = ROWS;
  #rate = new Rate();
  #forecast = new Forecast();
  #running = false;
  #ids = 0;

  /**
   * @param {import( "./field.js").UploadField} field
   * @param {string} label of its input
   */
  constructor(field, label) {
    const { texts } = (this.field = field);
    const name = fill(texts.list, { label });
    this.bar = new Bar(name);
    this.line = part("span", "line");
    /** @type {[Bulk, HTMLButtonElement][]} */
    this.buttons = (/** @type {Bulk[]} */ (["pauseAll", "resumeAll", "retryFailed", "removeFailed", "removeAll"])).map((action) => {
      const quiet = action.startsWith("remove") ? "button async-upload-quiet" : "button";
      const button = part("button", quiet, { type: "button", "data-action": action }, texts[action]);
      button.addEventListener("click", () => field.actOnAll(action));
      return [action, button];
    });
    const actions = part("span", "actions", {}, ...this.buttons.map(([, button]) => button));
    this.summary = part("div", "summary", {}, this.line, this.bar.element, actions);
    this.list = part("ul", "files", { "aria-label": name, role: "list" });
    this.rest = part("span", "rest");
    const more = part("button", "button", { type: "button" }, texts.showMore);
    more.addEventListener("click", () => {
      this.#most += 2 * ROWS;
      this.update(this.items);
    });
    this.more = part("div", "more", {}, this.rest, more);
    this.element = part("div", "list", {}, this.summary, this.list, this.more);
    /** @type {readonly Item[]} */
    this.items = [];
  }

  /**
   * Show how things stand. Called at most a few times a second.
   * @param {readonly Item[]} items
   * @returns {ReturnType<typeof sum>}
   */
  update(items) {
    this.items = items;
    const total = sum(items);
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
    this.#sumUp(total);
    return total;
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

  /** @param {ReturnType<typeof sum>} total */
  #sumUp(total) {
    const { texts, formats } = this.field;
    const running = total.busy > 0;
    const left = this.#forecast.update(total.amounts, running, performance.now());
    if (running !== this.#running) {
      if (running) this.#rate.start(total.arrived);
      else this.#rate.stop();
      this.#running = running;
    }
    this.summary.hidden = total.count < 2;
    if (this.summary.hidden) return;
    if (running) this.#rate.update(total.arrived);
    const sentences = [fill(texts.uploadedOf, { done: formats.count(total.done), count: formats.count(total.count) })];
    if (total.broken) sentences.push(fill(texts.failedCount, { count: formats.count(total.broken) }));
    sentences.push(fill(texts.sentOf, { sent: formats.size(total.arrived), size: formats.size(total.size) }));
    if (running && this.#rate.rate) sentences.push(formats.rate(this.#rate.rate));
    if (left !== undefined) sentences.push(fill(texts.left, { time: formats.time(left) }));
    this.line.textContent = join(sentences);
    this.bar.element.hidden = total.busy + total.paused === 0;
    const fraction = total.size ? total.arrived / total.size : 1;
    this.bar.show(fraction, join([formats.percent(fraction), sentences[0]], ", "));
    /** @type {Record<Bulk, boolean>} */
    const useful = {
      pauseAll: total.busy > 1,
      resumeAll: total.paused > 1,
      retryFailed: total.retryable > 1,
      removeFailed: total.broken > 1,
      removeAll: true,
    };
    for (const [action, button] of this.buttons) {
      if (!useful[action] && button === document.activeElement) this.buttons.at(-1)?.[1].focus();
      button.hidden = !useful[action];
    }
  }
}
