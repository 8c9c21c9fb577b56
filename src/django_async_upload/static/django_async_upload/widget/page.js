/**
 * What the elements of one page share towards the server: one Uploader, so one socket, for each address; the uploads that earlier
 * pages did not finish, each offered once; and those whose element has left the page.
 */
import { Uploader } from "../client.js";

/** @typedef {import( "../client.js").Remembered} Remembered */
/** @typedef {import( "./item.js").Item} Item */

/** @type {Map<string, Uploader>} */
const uploaders = new Map();
/** @type {Map<string, Promise<Remembered[]>>} */
const unfinished = new Map();
/** Keys of uploads that an element has taken to offer. @type {Set<string>} */
const offered = new Set();
/** @type {Map<string, Item[]>} */
const orphans = new Map();

const LOOK_AGAIN = 30_000; // ms
const login = new EventTarget();

/** @param {string} url of the WebSocket */
export function uploaderOf(url) {
  let uploader = uploaders.get(url);
  if (!uploader) uploaders.set(url, (uploader = new Uploader({ url, authenticate })));
  return uploader;
}

/**
 * A login has ended (or, without an error, soon will). There is no ticket to bring: the person signs in, most likely in another
 * tab, and the cookie counts again. So the server is asked again whenever somebody comes back to this tab.
 * @param {unknown} error
 * @returns {Promise<undefined>}
 */
async function authenticate(error) {
  if (!error) return;
  await new Promise((resolve) => {
    const again = new AbortController();
    const look = () => {
      if (document.visibilityState === "hidden") return;
      again.abort();
      clearInterval(timer);
      resolve(undefined);
    };
    const timer = setInterval(look, LOOK_AGAIN);
    document.addEventListener("visibilitychange", look, { signal: again.signal });
    window.addEventListener("focus", look, { signal: again.signal });
    login.addEventListener("again", look, { signal: again.signal });
  });
}

/** The person says that they have signed in. */
export function signedIn() {
  login.dispatchEvent(new Event("again"));
}

/**
 * The unfinished uploads of earlier pages that belong to a field and that no other element of the page offers.
 * @param {string} url
 * @param {string} field its token
 * @param {number} most
 */
export async function offers(url, field, most) {
  let all = unfinished.get(url);
  if (!all) unfinished.set(url, (all = uploaderOf(url).remembered()));
  const own = (await all).filter((one) => (one.field ?? "") === field && !offered.has(one.key)).slice(0, most);
  for (const { key } of own) offered.add(key);
  return own;
}

/**
 * The page was exchanged under a running upload (htmx, Turbo, a router). It goes on, and the field finds it when it comes back.
 * @param {string} url
 * @param {string} field
 * @param {Item[]} items
 */
export function leave(url, field, items) {
  if (items.length) orphans.set(`${url} ${field}`, items);
}

/**
 * @param {string} url
 * @param {string} field
 */
export function adopt(url, field) {
  const key = `${url} ${field}`;
  const items = orphans.get(key) ?? [];
  orphans.delete(key);
  return items;
}
