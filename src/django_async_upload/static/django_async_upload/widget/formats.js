/**
 * Numbers as people read them, in the language of the document. Sizes are written as Django's `filesizeformat` writes them, with
 * its names of units: a size reads the same here, in an error of the form, in the admin and in a template of the page.
 */
import { ENGLISH } from "./english.js";
import { fill } from "./texts.js";

/** @typedef {import( "./reasons.js").Texts} Texts */

/** @type {readonly (keyof Texts)[]} */
const UNITS = ["kilobytes", "megabytes", "gigabytes", "terabytes", "petabytes"];

export class Formats {
  /**
   * @param {string} [language] a BCP 47 tag; one that is not valid, or none, means the browser's language
   * @param {Texts} [texts] with the names of units
   */
  constructor(language, texts = ENGLISH) {
    this.texts = texts;
    try {
      this.language = Intl.getCanonicalLocales(language || [])[0];
    } catch {
      this.language = undefined;
    }
    /** Making an Intl.NumberFormat costs more than using it. @type {Map<string, Intl.NumberFormat>} */
    this.numbers = new Map();
  }

  /** @param {number} count a whole number */
  count(count) {
    return this.#number("count", {}).format(count);
  }

  /** @param {number} fraction 0 to 1; rounded down, since 100 % means that it is done */
  percent(fraction) {
    return this.#number("percent", { style: "percent" }).format(Math.floor(fraction * 100) / 100);
  }

  /** @param {number} size bytes */
  size(size) {
    let amount = size;
    let unit = -1;
    while (amount >= 1024 && unit < UNITS.length - 1) {
      amount /= 1024;
      unit += 1;
    }
    if (unit < 0) return this.bytes(size);
    const tenths = this.#number("tenths", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
    return this.texts[UNITS[unit]].replace("%s", tenths.format(amount));
  }

  /** To the byte: "10,737,418,240 bytes". @param {number} size */
  bytes(size) {
    return this.#unit("byte", size, 0, "long"); // in short, English says "25 byte"
  }

  /**
   * A size and the limit that it exceeds: to the byte where they would read the same.
   * @param {number} size bytes
   * @param {number} limit bytes
   */
  sizeAndLimit(size, limit) {
    const rounded = { size: this.size(size), limit: this.size(limit) };
    return rounded.size === rounded.limit ? { size: this.bytes(size), limit: this.bytes(limit) } : rounded;
  }

  /** @param {number} rate bytes per second */
  rate(rate) {
    return fill(this.texts.perSecond, { size: this.size(rate) });
  }

  /**
   * A time to wait, coarse enough to be read: "40 sec", "3 min", "2 hr 10 min".
   * @param {number} seconds
   */
  time(seconds) {
    if (seconds < 59.5) return this.#unit("second", Math.max(1, Math.round(seconds)));
    const minutes = Math.round(seconds / 60);
    if (minutes < 60) return this.#unit("minute", minutes);
    const hours = this.#unit("hour", Math.floor(minutes / 60));
    // From ten hours on, minutes do not matter.
    if (minutes >= 600 || minutes % 60 === 0) return hours;
    return `${hours} ${this.#unit("minute", minutes % 60)}`;
  }

  /**
   * A time of day; with seconds where it is less than a minute away.
   * @param {number} at milliseconds since 1970
   */
  clock(at) {
    const timeStyle = at - Date.now() < 60_000 ? "medium" : "short";
    return new Intl.DateTimeFormat(this.language, { timeStyle }).format(at);
  }

  /**
   * @param {string} unit
   * @param {number} amount
   * @param {number} [digits] after the point
   * @param {"short" | "long"} [unitDisplay]
   */
  #unit(unit, amount, digits = 0, unitDisplay = "short") {
    const options = /** @type {const} */ ({ style: "unit", unit, unitDisplay, maximumFractionDigits: digits });
    return this.#number(`${unit}${digits}`, options).format(amount);
  }

  /**
   * @param {string} key
   * @param {Intl.NumberFormatOptions} options
   */
  #number(key, options) {
    let format = this.numbers.get(key);
    if (!format) this.numbers.set(key, (format = new Intl.NumberFormat(this.language, options)));
    return format;
  }
}
