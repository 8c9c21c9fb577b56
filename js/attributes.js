/** What the components of all frameworks have in common. */

/** @import { AsyncUploadEvents } from "./events.js" */

/**
 * @typedef {object} AsyncUploadProps
 * @property {string} name of the input
 * @property {string} [id] of the input, for its label
 * @property {string} [url] the WebSocket: a path, or a `ws:` or `wss:` URL; default `/ws/uploads/`
 * @property {string} [field] the signed token of a form's field, from the server
 * @property {string} [owner] an opaque tag of the owner, from the server; without it nothing is remembered for a later page
 * @property {string} [place] an opaque tag of what the form is for, from the server: what is uploaded here goes on only there
 * @property {"form" | "api" | "receiver"} [taker] who takes the finished file; default `api`
 * @property {boolean} [multiple]
 * @property {boolean} [directory] choose folders
 * @property {string} [accept] extensions and types, as of an input
 * @property {number} [maxSize] bytes
 * @property {boolean} [disabled]
 * @property {boolean} [required]
 * @property {Record<string, string>} [texts] those that are not as in `english.js`
 */

/** @param {AsyncUploadProps} props @returns {Record<string, unknown>} the attributes of the element */
export function elementAttributes({ url, field, owner, place, taker = "api", maxSize, directory, texts }) {
  return defined({
    ...{ url, field, owner, place, taker, "max-size": maxSize, directory: directory ? "" : undefined },
    texts: texts && JSON.stringify(texts),
  });
}

/** @param {AsyncUploadProps} props @returns {Record<string, unknown>} those of the input */
export function inputAttributes({ name, id, multiple, accept, disabled, required }) {
  return defined({ type: "file", name, id, multiple, accept, disabled, required });
}

/** @param {Record<string, unknown>} attributes */
function defined(attributes) {
  return Object.fromEntries(Object.entries(attributes).filter(([, value]) => value !== undefined));
}

/** The element's events, by what a component calls them. @type {Record<string, keyof AsyncUploadEvents>} */
export const EVENTS = {
  progress: "async-upload-progress",
  state: "async-upload-state",
  completed: "async-upload-completed",
  error: "async-upload-error",
  warning: "async-upload-warning",
};

/**
 * Let the element come to life. After the framework has put it into the page, not before: what a server has rendered is to be the
 * same until then.
 */
export function enhance() {
  return import("./widget.js");
}
