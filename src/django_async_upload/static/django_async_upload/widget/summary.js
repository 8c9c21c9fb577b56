/** All files of a field together: a line and a bar that sum them up, and what a user can do with all of them. */
import { Forecast, SMALL } from "../client/forecast.js";
import { Rate } from "../client/rate.js";
import { Bar, part } from "./parts.js";
import { fill, join } from "./texts.js";

/** @typedef {import( "./item.js").Item} Item */
/** @typedef {import( "./bulk.js").Action} Action */

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

/** Seen where there are several files. */
export class Summary {
  #rate = new Rate();
  #forecast = new Forecast();
  #running = false;

  /** @param {import( "./field.js").UploadField} field */
  constructor(field) {
    const { texts } = (this.field = field);
    this.bar = new Bar(field.list.name);
    this.line = part("span", "line");
    /** @type {[Action, HTMLButtonElement][]} */
    this.buttons = (/** @type {Action[]} */ (["pauseAll", "resumeAll", "retryFailed", "removeFailed", "removeAll"])).map((action) => {
      const quiet = action.startsWith("remove") ? "button async-upload-quiet" : "button";
      const button = part("button", quiet, { type: "button", "data-action": action }, texts[action]);
      button.addEventListener("click", () => field.bulk.act(action));
      return [action, button];
    });
    const actions = part("span", "actions", {}, ...this.buttons.map(([, button]) => button));
    this.element = part("div", "summary", {}, this.line, this.bar.element, actions);
  }

  /** @param {ReturnType<typeof sum>} total */
  update(total) {
    const { texts, formats } = this.field;
    const running = total.busy > 0;
    const left = this.#forecast.update(total.amounts, running, performance.now());
    if (running !== this.#running) {
      if (running) this.#rate.start(total.arrived);
      else this.#rate.stop();
      this.#running = running;
    }
    this.element.hidden = total.count < 2;
    if (this.element.hidden) return;
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
    /** @type {Record<Action, boolean>} */
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
