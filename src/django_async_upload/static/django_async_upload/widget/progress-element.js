/** What `<async-upload-progress>` shows, and whom it asks. */
import { ENDED, Watcher } from "../client/watcher.js";
import { Formats } from "./formats.js";
import { fill } from "./texts.js";

/** @typedef {import( "../client/watcher.js").Standing} Standing */

/** On a server, which imports the modules of a page in order to render it, there are no elements. */
const Base = /** @type {typeof HTMLElement} */ (globalThis.HTMLElement ?? Object);

/** Of pages that bring none of their own. @type {Record<string, string>} */
const ENGLISH = {
  percent: "{state}, {percent}%",
  soFar: "{state}, {size} so far",
  missing: "–",
  kilobytes: "%s KB",
  megabytes: "%s MB",
  gigabytes: "%s GB",
  terabytes: "%s TB",
  petabytes: "%s PB",
};

/** States in which the bytes say how far it is. */
const BY_BYTES = new Set(["created", "uploading", "interrupted"]);

/** One for each address, for all elements of the page. @type {Map<string, Watcher>} */
const watchers = new Map();

/** @param {string} url */
function watcherOf(url) {
  let watcher = watchers.get(url);
  if (!watcher) watchers.set(url, (watcher = new Watcher({ url })));
  return watcher;
}

/**
 * The progress of an upload that another page, or a program, sends. It puts a `<progress>` and a `<span>` with the state into itself, or
 * uses those that the server has rendered there. Who may watch the upload is the endpoint's decision.
 *
 * @attribute upload the id of the upload
 * @attribute url the WebSocket: a path, or a `ws:` or `wss:` URL; default `/ws/uploads/`
 * @attribute texts JSON with the names of states and other texts, from the server
 * @fires async-upload-standing `{standing}`: as the server has it, at most four times a second; bubbles. `null`: it does not exist, or this
 *   user may not watch it
 */
export class AsyncUploadProgressElement extends Base {
  static observedAttributes = ["upload"];

  /** @type {Watcher | null} */
  #watcher = null;
  #followed = "";
  /** @type {Standing | null} */
  #standing = null;
  /** @param {Event} event */
  #changed = (event) => this.#take(/** @type {CustomEvent} */ (event).detail);

  connectedCallback() {
    this.#watcher = watcherOf(this.getAttribute("url") ?? "/ws/uploads/");
    this.#watcher.addEventListener("changed", this.#changed);
    this.#follow();
  }

  disconnectedCallback() {
    this.#leave();
    this.#watcher?.removeEventListener("changed", this.#changed);
    this.#watcher = null;
  }

  attributeChangedCallback() {
    if (this.#watcher) this.#follow();
  }

  /** What is shown is what the server has: it tells every change, or the upload has ended. @returns {boolean} */
  get isLive() {
    const standing = this.#standing;
    return standing !== null && (ENDED.has(standing.state) || (this.#watcher?.isLive ?? false));
  }

  /** As the server has told it; null before that. @returns {Standing | null} */
  get standing() {
    return this.#standing;
  }

  #follow() {
    this.#leave();
    this.#standing = null;
    this.#followed = this.getAttribute("upload") ?? "";
    if (this.#followed) this.#watcher?.follow(this.#followed);
  }

  #leave() {
    if (this.#followed) this.#watcher?.leave(this.#followed);
    this.#followed = "";
  }

  /** @param {{standings: Standing[], missing: string[]}} changed */
  #take({ standings, missing }) {
    const standing = standings.find(({ upload }) => upload === this.#followed);
    if (standing) {
      this.#standing = standing;
      this.#show(standing);
      if (ENDED.has(standing.state)) this.#leave();
    } else if (missing.includes(this.#followed)) {
      this.#standing = null;
      this.#leave();
      if (!this.firstElementChild) this.#span().textContent = this.#texts().missing;
    } else return;
    const detail = { standing: this.#standing };
    this.dispatchEvent(new CustomEvent("async-upload-standing", { bubbles: true, detail }));
  }

  /** @param {Standing} standing */
  #show({ state, name, size, durable, received = durable }) {
    const texts = this.#texts();
    const formats = new Formats(document.documentElement.lang, /** @type {any} */ (texts));
    const values = { state: texts[state] ?? state, percent: "", size: "" };
    const isByBytes = BY_BYTES.has(state);
    let text = values.state;
    let value = null;
    if (isByBytes && size === undefined) {
      text = fill(texts.soFar, { ...values, size: formats.size(received) });
    } else if (isByBytes && size !== undefined) {
      value = size ? Math.floor((100 * received) / size) : 100;
      text = fill(texts.percent, { ...values, percent: formats.count(value) });
    }
    this.#setBar(ENDED.has(state), value, name);
    const span = this.#span();
    if (span.textContent !== text) span.textContent = text;
    this.dataset.state = state;
  }

  /**
   * @param {boolean} isOver
   * @param {number | null} value of a hundred; null while it is not known
   * @param {string} name
   */
  #setBar(isOver, value, name) {
    let bar = this.querySelector("progress");
    if (isOver) {
      bar?.remove();
      return;
    }
    if (!bar) {
      bar = document.createElement("progress");
      bar.max = 100;
      this.prepend(bar, " ");
    }
    bar.setAttribute("aria-label", name);
    if (value === null) bar.removeAttribute("value");
    else bar.value = value;
  }

  #span() {
    let span = this.querySelector("span");
    if (!span) this.append((span = document.createElement("span")));
    return span;
  }

  /** @returns {Record<string, string>} */
  #texts() {
    try {
      return { ...ENGLISH, ...JSON.parse(this.getAttribute("texts") ?? "{}") };
    } catch (error) {
      console.error("django-resumable-upload: the texts attribute is not JSON", error);
      return ENGLISH;
    }
  }
}
