/**
 * The CSRF token of a form that has waited. A new login in another tab makes a new one, which the old form does not have.
 * UploadMiddleware tells it at the address to which the form goes, wherever the project keeps it: cookie, cookie for HTTP only, session.
 */
import { tokenRenewed } from "./page.js";

const NAME = "csrfmiddlewaretoken";
/** Receipts: what the headers of a request hold. */
export const MOST_ASKED = 50;
const PATIENCE = 10_000; // ms

/**
 * Without an answer the form keeps what it has: then the server says what is wrong.
 * @param {HTMLFormElement} form
 */
export async function renewToken(form) {
  const inputs = [...form.elements].filter((each) => each instanceof HTMLInputElement && each.name === NAME);
  if (!inputs.length) return;
  const known = await ask(new URL(form.getAttribute("action") || "", location.href));
  if (!known) return;
  for (const input of inputs) /** @type {HTMLInputElement} */ (input).value = known.csrf;
  if (known.owner) tokenRenewed(form);
}

/**
 * @param {URL} address
 * @param {string[]} [receipts] of which is asked whether they can be used
 * @returns {Promise<{csrf: string, owner: string, usable?: string[]} | null>} null: the server does not tell
 */
export async function ask(address, receipts = []) {
  if (address.origin !== location.origin) return null;
  address.hash = "";
  try {
    const headers = { "Async-Upload": "token", ...(receipts.length ? { "Async-Upload-Receipts": receipts.slice(0, MOST_ASKED).join(",") } : {}) };
    const signal = AbortSignal.timeout(PATIENCE);
    const answer = await fetch(address, { headers, signal, cache: "no-store", credentials: "same-origin" });
    const known = answer.ok && answer.headers.get("Content-Type") === "application/json" ? await answer.json() : null;
    return typeof known?.csrf === "string" ? known : null;
  } catch {
    return null; // no network, or not our middleware
  }
}
