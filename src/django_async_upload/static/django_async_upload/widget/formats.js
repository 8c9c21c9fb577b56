/**
 * Numbers as people read them, in the language of the document. Sizes count in steps of 1,024, as Django's
 * `filesizeformat` does, so that a limit reads the same here and in an error of the form.
 */
const UNITS = ["byte", "kilobyte", "megabyte", "gigabyte", "terabyte"];

export class Formats {
  /** @param {string} [language] a BCP 47 tag; one that is not valid, or none, means the browser's language */
  constructor(language) {
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
    return this.#bytes(size, "");
  }

  /** @param {number} rate bytes per second */
  rate(rate) {
    return this.#bytes(rate, "-per-second");
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
    // Beyond ten hours nobody counts minutes.
    if (minutes >= 600 || minutes % 60 === 0) return hours;
    return `${hours} ${this.#unit("minute", minutes % 60)}`;
  }

  /**
   * @param {number} amount
   * @param {string} per
   */
  #bytes(amount, per) {
    let step = 0;
    while (amount >= 1000 && step < UNITS.length - 1) {
      amount /= 1024;
      step += 1;
    }
    const digits = step === 0 || amount >= 100 ? 0 : 1;
    // In short, English says "25 byte".
    return this.#unit(UNITS[step] + per, amount, digits, step || per ? "short" : "long");
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
