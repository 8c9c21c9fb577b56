/**
 * When something is worth saying aloud: each quarter, seldom; that the network or the login is gone; that all is done.
 */
import { fill } from "./texts.js";

const PAUSE = 8000; // ms between two percentages

export class Milestones {
  #quarter = 0;
  #at = 0;
  #completed = 0;
  #halt = "";

  /**
   * @param {import( "./announcer.js").Announcer} announcer
   * @param {import( "./reasons.js").Texts} texts
   * @param {import( "./formats.js").Formats} formats
   */
  constructor(announcer, texts, formats) {
    this.announcer = announcer;
    this.texts = texts;
    this.formats = formats;
  }

  /**
   * @param {readonly import( "./item.js").Item[]} items
   * @param {ReturnType<typeof import( "./summary.js").sum>} total of the items
   * @param {number} [now] ms
   */
  pass(items, total, now = performance.now()) {
    this.#sayHalt(items);
    this.#sayQuarter(total, now);
    const completed = items.filter(({ upload, state }) => upload && state === "completed");
    if (!total.busy && completed.length > this.#completed && !total.broken) {
      const alone = items.length === 1;
      const { saidCompleted, saidAllCompleted } = this.texts;
      this.announcer.say(alone ? fill(saidCompleted, { name: items[0].name }) : saidAllCompleted);
    }
    if (!total.busy) this.#completed = completed.length;
  }

  /** @param {readonly import( "./item.js").Item[]} items */
  #sayHalt(items) {
    const states = new Set(items.map(({ state }) => state));
    const halts = /** @type {const} */ (["unauthenticated", "offline"]);
    const halt = halts.find((each) => states.has(each)) ?? "";
    if (halt === this.#halt) return;
    this.#halt = halt;
    if (halt) this.announcer.say(this.texts[halt]);
    else if (states.has("uploading")) this.announcer.say(this.texts.saidOnline);
  }

  /**
   * @param {ReturnType<typeof import( "./summary.js").sum>} total
   * @param {number} now
   */
  #sayQuarter(total, now) {
    const fraction = total.size ? total.arrived / total.size : 0;
    const quarter = Math.floor(fraction * 4);
    if (!total.busy || quarter < this.#quarter) {
      this.#quarter = quarter;
      this.#at = now;
    } else if (quarter > this.#quarter && quarter < 4 && now - this.#at > PAUSE) {
      this.#quarter = quarter;
      this.#at = now;
      this.announcer.say(fill(this.texts.saidPercent, { percent: this.formats.percent(fraction) }));
    }
  }
}
