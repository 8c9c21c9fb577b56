/** What is posted from one field in place of files: a hidden input for each receipt, and one for the field's token. */
import { ask } from "./csrf.js";
import { forgetSent, noteSent } from "./sent.js";

/** @typedef {import( "./item.js").Item} Item */

/** What the name of a posted receipt begins with; the name of the input follows. */
export const RECEIPT = "async_upload.";

/** The same for the field's token, which is posted beside receipts. */
const FIELD = "async_upload_field.";

/** Stands before a receipt whose file was uploaded for another page or object, and which the user has taken over. */
const MOVED = "moved:";

/** @param {HTMLElement} element @returns {HTMLInputElement[]} what is posted from it beside the file: receipts and the token */
export function postedIn(element) {
  return [...hiddenIn(element, RECEIPT), ...hiddenIn(element, FIELD)];
}

/**
 * @param {HTMLElement} element
 * @param {string} prefix
 * @returns {HTMLInputElement[]}
 */
function hiddenIn(element, prefix) {
  return [...element.querySelectorAll(/** @type {"input"} */ (`input[type=hidden][name^="${prefix}"]`))];
}

/** @param {string} value a hidden input's */
function hidden(value) {
  return Object.assign(document.createElement("input"), { type: "hidden", value });
}

/** As the server made it. @param {Item} item */
export function receiptOf({ receipt }) {
  return (receipt?.value ?? "").replace(MOVED, "");
}

export class Receipts {
  #selection;
  /** Posts the token, from the first receipt on. @type {HTMLInputElement | undefined} */
  #token;

  /** @param {import( "./selection.js").Selection} selection */
  constructor(selection) {
    this.#selection = selection;
    /** Receipts that came with the page, as a reset of the form brings them back. */
    this.initial = hiddenIn(selection.field.element, RECEIPT);
    this.#token = hiddenIn(selection.field.element, FIELD)[0];
  }

  /**
   * @param {Item} item whose upload has completed
   * @param {string} receipt from the server
   */
  make(item, receipt) {
    const { name, size, upload } = item;
    item.receipt = hidden((upload?.field === this.#selection.token ? "" : MOVED) + receipt);
    Object.assign(item.receipt.dataset, { name, size });
    this.post(item.receipt);
  }

  /** @param {HTMLInputElement} receipt */
  post(receipt) {
    const { field, token } = this.#selection;
    this.#address(receipt, RECEIPT);
    field.element.append(receipt);
    if (token && !this.#token) {
      this.#address((this.#token = hidden(token)), FIELD);
      field.element.append(this.#token);
    }
  }

  /** Receipts follow their input: its name, its form, whether it is disabled. */
  settle() {
    for (const { receipt } of this.#selection.items) if (receipt) this.#address(receipt, RECEIPT);
    if (this.#token) this.#address(this.#token, FIELD);
  }

  /**
   * @param {HTMLInputElement} posted
   * @param {string} prefix
   */
  #address(posted, prefix) {
    const { input } = this.#selection.field;
    const form = input.getAttribute("form");
    posted.name = prefix + input.name;
    posted.disabled = input.disabled;
    if (form !== null) posted.setAttribute("form", form);
  }

  /** They go out with the form. */
  sent() {
    const posted = this.#selection.items.filter(({ receipt }) => receipt);
    for (const item of posted) item.isSent = true;
    noteSent(posted.flatMap(({ key }) => key || []));
  }

  /** The page is back as it was left: what the server has taken meanwhile goes, the rest can be posted again. */
  async restored() {
    const selection = this.#selection;
    const posted = selection.items.filter(({ isSent }) => isSent);
    if (!posted.length) return;
    for (const { receipt } of posted) receipt?.remove();
    const address = new URL(selection.field.form?.getAttribute("action") || "", location.href);
    const usable = (await ask(address, posted.map(receiptOf)))?.usable ?? [];
    for (const item of posted) {
      if (!selection.items.includes(item) || !usable.includes(receiptOf(item))) continue;
      item.isSent = false;
      if (item.receipt) this.post(item.receipt);
    }
    forgetSent(posted.flatMap(({ key, isSent }) => (isSent ? [] : key)));
    selection.clear(({ isSent }) => isSent);
    selection.field.change();
  }
}
