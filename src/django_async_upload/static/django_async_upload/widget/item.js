/**
 * One file in the list of an `<async-upload>`: an upload, or a file that was refused before it began, or a receipt that the server
 * sent with the page, or an upload that an earlier page did not finish.
 */
import { mayRetry, reason, waitsFor } from "./reasons.js";
import { fill, join } from "./texts.js";

/** @typedef {import( "./reasons.js").Texts} Texts */
/** @typedef {import( "./formats.js").Formats} Formats */
/** @typedef {import( "../client.js").Upload} Upload */
/** @typedef {import( "../client.js").Remembered} Remembered */
/** @typedef {import( "../client.js").Upload["state"] | "refused" | "unfinished" | "elsewhere"} State */

/**
 * What a row shows. `fraction`: 0 to 1, or null without a bar. `value`: the same in words.
 * @typedef {{state: State, name: string, note: string, fraction: number | null, value: string,
 *   main: "" | "pause" | "resume" | "retry" | "continue" | "useHere", last: "cancel" | "remove" | "discard", signIn: boolean}} View
 */

/** These go on by themselves. */
const BUSY = new Set(["queued", "uploading", "offline", "unauthenticated", "waiting", "finishing"]);
/** A user has to do something about these. */
const BROKEN = new Set(["failed", "refused", "cancelled"]);

export class Item {
  /**
   * @param {object} of
   * @param {string} of.name
   * @param {number} of.size bytes
   * @param {File} [of.file]
   * @param {Upload} [of.upload]
   * @param {Remembered} [of.unfinished]
   * @param {import( "./places.js").Place} [of.elsewhere] where it belongs, if not here
   * @param {string} [of.refusal] why it was refused, a sentence
   * @param {HTMLInputElement} [of.receipt] the hidden input that is posted
   */
  constructor({ name, size, file, upload, unfinished, elsewhere, refusal, receipt }) {
    this.name = name;
    this.size = size;
    this.file = file ?? null;
    this.upload = upload ?? null;
    this.unfinished = unfinished ?? null;
    this.elsewhere = elsewhere ?? null;
    /** Its receipt went out with a form. */
    this.isSent = false;
    /** Of the upload, where the receipt came with the page and an earlier page remembers it. */
    this.keptKey = "";
    this.refusal = refusal ?? "";
    this.receipt = receipt ?? null;
    /** What tells its file from others; "" where it is not known. */
    this.facts = "";
    /** Its place in the list: 1 for the file that was chosen first. */
    this.order = 0;
    /** It was paused when it was set aside, not by the user. */
    this.pausedAside = false;
  }

  /** @returns {State} */
  get state() {
    if (this.upload) return this.upload.state;
    if (this.refusal) return "refused";
    if (this.elsewhere) return "elsewhere";
    return this.unfinished ? "unfinished" : "completed";
  }

  /** Of the upload, now or in an earlier page; "" where that is not known. */
  get key() {
    return this.upload?.key ?? this.unfinished?.key ?? this.keptKey;
  }

  /** An earlier page left it, and it was not continued here. */
  get isOffer() {
    return this.state === "unfinished" || this.state === "elsewhere";
  }

  get busy() {
    return BUSY.has(this.state);
  }

  get broken() {
    return BROKEN.has(this.state);
  }

  /** Bytes that have arrived. */
  get arrived() {
    if (this.state === "completed") return this.size;
    if (this.unfinished && !this.upload) return this.unfinished.sent;
    return this.upload ? Math.round((this.upload.progress.fraction || 0) * this.size) : 0;
  }

  get retryable() {
    const state = this.state;
    return state === "cancelled" || (state === "failed" && !!this.upload?.error && mayRetry(this.upload.error));
  }
}

/** @type {Readonly<Record<string, View["main"]>>} */
const MAIN = Object.freeze({
  queued: "pause",
  uploading: "pause",
  offline: "pause",
  waiting: "retry",
  paused: "resume",
  unauthenticated: "continue",
});

/**
 * @param {Item} item
 * @param {Texts} texts
 * @param {Formats} formats
 * @returns {View}
 */
export function describe(item, texts, formats) {
  const { state, name, size, upload } = item;
  const progress = upload?.progress;
  const arrived = item.arrived;
  const amounts = { sent: formats.size(arrived), size: formats.size(size) };
  const left = progress?.remaining === undefined ? "" : fill(texts.left, { time: formats.time(progress.remaining) });
  const moving = state === "uploading" || state === "finishing";
  const bar = ["paused", "offline", "unauthenticated", "waiting", "queued"].includes(state);
  const fraction = size ? arrived / size : moving ? 1 : 0;
  const percent = formats.percent(fraction);
  return {
    state,
    name,
    note: note(),
    // A file that waits for its turn has no bar before anything of it has arrived.
    fraction: moving || (bar && arrived) || (state === "unfinished" && size) ? fraction : null,
    value: join([percent, state === "uploading" ? left : note()], ", "),
    main: item.retryable ? "retry" : item.isOffer && item.unfinished?.canContinue ? (item.elsewhere ? "useHere" : "continue") : (MAIN[state] ?? ""),
    last: item.isOffer ? "discard" : item.broken || state === "completed" ? "remove" : "cancel",
    signIn: state === "unauthenticated",
  };

  function note() {
    switch (state) {
      case "queued":
      case "cancelled":
      case "offline":
      case "unauthenticated":
        return texts[state];
      case "waiting": {
        const { error, retryAt } = /** @type {Upload} */ (upload);
        const again = retryAt ? fill(texts.tryingAgain, { time: formats.clock(retryAt) }) : "";
        return error ? join([waitsFor(error, texts), again], " ") : texts.queued;
      }
      case "paused":
        return join([texts.paused, percent, fill(texts.sentOf, amounts)]);
      case "uploading":
        if (!arrived) return join([texts.starting, amounts.size]);
        return join([percent, fill(texts.sentOf, amounts), progress?.rate ? formats.rate(progress.rate) : "", left]);
      case "finishing":
        return texts[/** @type {"verifying" | "inspecting" | "finalizing"} */ (progress?.phase)] ?? texts.verifying;
      case "completed":
        return join([texts.completed, amounts.size]);
      case "failed":
        return upload?.error ? reason(upload.error, item, texts, formats) : fill(texts.errorOther, { message: "" });
      case "refused":
        return item.refusal;
      case "elsewhere": {
        if (item.unfinished?.isFinished) return join([item.elsewhere?.title ? texts.elsewhereDone : texts.sentBefore, amounts.size]);
        return join([fill(texts.elsewhere, amounts), item.unfinished?.canContinue ? "" : texts.pickAgain]);
      }
      default: {
        const go = item.unfinished?.canContinue ? fill(texts.mayContinue, { action: texts.continue }) : texts.pickAgain;
        return join([fill(texts.unfinished, amounts), go]);
      }
    }
  }
}
