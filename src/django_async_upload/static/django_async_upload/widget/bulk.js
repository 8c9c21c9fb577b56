/** What a user does with all files of a field at once. */
import { inSlices } from "../client/slices.js";

/** @typedef {"pauseAll" | "resumeAll" | "retryFailed" | "removeFailed" | "removeAll"} Action */

export class Bulk {
  #field;
  /** Actions that are being carried out. */
  #running = 0;
  /** @type {Action | ""} */
  #last = "";

  /** @param {import( "./field.js").UploadField} field */
  constructor(field) {
    this.#field = field;
  }

  get isWorking() {
    return this.#running > 0;
  }

  /** The last one counts, even while an earlier one is still being carried out. @param {Action} action */
  act(action) {
    const field = this.#field;
    this.#last = action;
    if (action === "removeAll" || action === "removeFailed") {
      field.setAside(action === "removeFailed" ? ({ broken }) => broken : undefined);
      field.input.focus();
    } else {
      void this.#tell(action);
    }
    field.change(true);
  }

  /** @param {Action} action */
  async #tell(action) {
    this.#running += 1;
    await inSlices([...this.#field.selection.items], ({ upload, busy, state, retryable }) => {
      if (action === "pauseAll" && busy) upload?.pause();
      if (action === "resumeAll" && state === "paused") upload?.resume();
      if (action === "retryFailed" && retryable) upload?.retry();
      return this.#last === action;
    });
    this.#running -= 1;
    this.#field.change(true);
  }
}
