/** What a user reads: where it comes from, and how values get into it. */
import { ENGLISH } from "./english.js";

/** @typedef {Readonly<Record<keyof typeof ENGLISH, string>>} Texts */

/** Of the page, as JSON, from the server: those of its language. */
const IN_THE_PAGE = "meta[name=async-upload-texts]";

/** What a page shows that has brought no texts: their names. */
const NAMES = new Proxy({}, { get: (_target, name) => String(name) });

/**
 * The texts of one element: its own over the page's over English. Unknown keys and values that are not strings are left out.
 * @param {string | null} json the `texts` attribute
 * @returns {Texts}
 * @throws {SyntaxError} where it is not JSON
 */
export function textsFrom(json) {
  const page = globalThis.document?.querySelector(IN_THE_PAGE)?.getAttribute("content");
  const given = { ...(page ? JSON.parse(page) : {}), ...(json ? JSON.parse(json) : {}) };
  const isBundled = !Object.keys(ENGLISH).length;
  const own = Object.entries(given).filter(([key, text]) => (isBundled || key in ENGLISH) && typeof text === "string");
  return Object.freeze(Object.assign(isBundled ? Object.create(NAMES) : {}, ENGLISH, Object.fromEntries(own)));
}

/** The same, also where its attribute is not JSON. @param {HTMLElement} element */
export function textsOf(element) {
  try {
    return textsFrom(element.getAttribute("texts"));
  } catch (error) {
    console.error("django-resumable-upload: the texts attribute is not JSON", error);
    return textsFrom(null);
  }
}

/** Letters that are written from right to left. */
const RIGHT_TO_LEFT = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]/;

/**
 * Put values into a text. A placeholder without a value stays as it is, so that a slip in a translation is seen.
 * @param {string} text for example "{sent} of {size}"
 * @param {Record<string, string>} [values]
 */
export function fill(text, values = {}) {
  return text.replace(/\{(\w+)\}/g, (braces, name) => {
    if (!Object.hasOwn(values, name)) return braces;
    return RIGHT_TO_LEFT.test(text + values[name]) ? isolated(values[name]) : values[name];
  });
}

/**
 * Facts beside each other; what is empty is left out.
 * @param {string[]} facts
 * @param {string} [between]
 */
export function join(facts, between = " · ") {
  const mixed = RIGHT_TO_LEFT.test(facts.join(""));
  return facts.filter(Boolean).map((fact) => (mixed ? isolated(fact) : fact)).join(between);
}

/** Keeps the order of words where both directions of writing meet: a file's name, a unit. @param {string} text */
function isolated(text) {
  return `\u2068${text}\u2069`;
}
