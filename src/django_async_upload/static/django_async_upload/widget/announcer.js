/**
 * One polite live region: what a screen reader says while files are uploaded. Sentences that come within one pause are said together,
 * and only the last of many: each says how things stand, so older ones are stale.
 */
const PAUSE = 1200; // ms
const AT_ONCE = 3; // sentences

export class Announcer {
  constructor() {
    this.element = document.createElement("span");
    this.element.className = "async-upload-said";
    this.element.setAttribute("role", "status");
    /** @type {string[]} */
    this.waiting = [];
    this.last = 0;
    this.timer = 0;
  }

  /** @param {string} text a sentence; the same one twice in a row is said once */
  say(text) {
    if (this.waiting.at(-1) === text) return;
    this.waiting.push(text);
    if (!this.timer) this.timer = setTimeout(() => this.#speak(), Math.max(100, this.last + PAUSE - performance.now()));
  }

  #speak() {
    this.timer = 0;
    this.last = performance.now();
    this.element.textContent = this.waiting.splice(0).slice(-AT_ONCE).join(" ");
  }
}
