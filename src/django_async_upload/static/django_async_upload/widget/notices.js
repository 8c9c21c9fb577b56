/** What the user is told by one field: under its zone, beside the button of its form, while that waits, and aloud. */
import { Announcer } from "./announcer.js";
import { keep } from "./form-guard.js";
import { part } from "./parts.js";

/** Says also what it shows. */
export class Notices extends Announcer {
  /** Beside the button of the form. @type {HTMLElement | null} */
  #beside = null;
  #texts;

  /** @param {import( "./field.js").UploadField} field */
  constructor(field) {
    super();
    const texts = (this.#texts = field.texts);
    this.message = part("p", "message", { id: `${field.element.id}-async-message` });
    const cancel = part("button", "button", { type: "button" }, texts.submitCancel);
    cancel.addEventListener("click", () => {
      keep(field.form);
      this.say(texts.submitCancelled);
      field.input.focus();
    });
    this.standby = part("div", "waiting", {}, part("span", "line", {}, texts.submitWaiting), cancel);
    this.standby.hidden = this.message.hidden = true;
  }

  /**
   * @param {string} text shown under the zone and said; "" takes it away
   * @param {"error" | "note"} [kind]
   */
  show(text, kind = "error") {
    this.clearBeside();
    this.message.dataset.kind = kind;
    this.message.hidden = !text;
    this.message.textContent = text;
    if (text) this.say(text);
  }

  clearBeside() {
    this.#beside?.remove();
  }

  /** @param {HTMLElement | null} button of the form that was not sent */
  stop(button) {
    const { submitStopped } = this.#texts;
    this.show(submitStopped);
    // A long form may have its button far below the field.
    button?.after((this.#beside = part("span", "beside", {}, submitStopped)));
  }

  /** @param {boolean} waiting the form waits for this field */
  wait(waiting) {
    if (waiting === !this.standby.hidden) return;
    this.standby.hidden = !waiting;
    if (!waiting) return;
    this.show("");
    this.say(this.#texts.submitWaiting);
    this.standby.scrollIntoView({ block: "nearest" });
  }
}
