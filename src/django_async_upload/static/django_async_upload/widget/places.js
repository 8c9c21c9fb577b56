/**
 * Which field of which page an upload belongs to: "Which file belongs where" in docs/design.md. Here is what is remembered of that,
 * what earlier pages left for a field, and the uploads whose field has left the page.
 */
import { MOST_ASKED, ask } from "./csrf.js";
import { uploaderOf } from "./page.js";
import { forgetSent, sentBefore } from "./sent.js";

/** @typedef {import( "./item.js").Item} Item */
/** @typedef {import( "../client.js").Remembered} Remembered */

/**
 * What is remembered with an upload. `key` is the place, `field` the input's name in any row of its formset; `page` and `title` are
 * for the user.
 * @typedef {{key: string, field: string, page: string, title: string}} Place
 */

/**
 * A field as seen from here.
 * @typedef {object} Claimant
 * @property {string} url of the WebSocket
 * @property {string} owner an opaque tag of the owner; "" where that is not known: then nothing is remembered
 * @property {Place} place
 * @property {boolean} isNew it has come into the page in this task
 * @property {(items: Item[]) => void} receive uploads that were this field's before the page was exchanged
 * @property {(key: string) => void} release another field of the page offers that upload
 */

/** @type {Set<Claimant>} */
const claimants = new Set();
/** What is offered, by the upload's key. @type {Map<string, Claimant>} */
const offered = new Map();
/** Asked in this task, by address and owner. @type {Map<string, Promise<Remembered[]>>} */
const asked = new Map();
/** @type {Set<{where: string, items: Item[]}>} */
const parked = new Set();
/** Addresses and owners for which the records of other owners were deleted. @type {Set<string>} */
const cleaned = new Set();

/** @param {Claimant} claimant */
function where({ url, owner, place }) {
  return JSON.stringify([url, owner, place.key]);
}

/**
 * @param {string} path of the page when the field came into it
 * @param {HTMLElement} element
 * @param {HTMLInputElement} input
 * @returns {Place}
 */
export function placeOf(path, element, input) {
  return {
    key: JSON.stringify([path, element.getAttribute("place") ?? "", input.name]),
    field: input.name.replace(/(?<=-)\d+(?=-)/g, "__prefix__"),
    page: location.href,
    title: document.title,
  };
}

/**
 * @param {Claimant} claimant in the page from now on
 * @param {Iterable<string>} [keys] of uploads that it offers already
 * @returns {Item[]} what it had when the page was exchanged
 */
export function enter(claimant, keys = []) {
  claimants.add(claimant);
  for (const key of keys) if (!offered.has(key)) offered.set(key, claimant);
  const own = [...parked].filter((each) => each.where === where(claimant));
  for (const each of own) parked.delete(each);
  return own.flatMap(({ items }) => items);
}

/**
 * The field leaves the page, perhaps only to be put elsewhere in it. What it uploads goes on, and is taken over by the field that stands
 * in the same place: now, if that has come in this task already, or later.
 *
 * @param {Claimant} claimant
 * @param {Item[]} items
 * @returns {() => Item[]} takes back what no field has taken
 */
export function park(claimant, items) {
  claimants.delete(claimant);
  for (const [key, by] of offered) if (by === claimant) offered.delete(key);
  const next = [...claimants].find((other) => other.isNew && where(other) === where(claimant));
  if (next) {
    next.receive(items);
    return () => [];
  }
  const entry = { where: where(claimant), items };
  if (items.length) parked.add(entry);
  for (const { upload } of items) upload?.addEventListener("state", tell);
  return () => (parked.delete(entry) ? items : []);
}

/** Fires `change`: how things stand with uploads whose field has left the page. */
export const parking = new EventTarget();

function tell() {
  parking.dispatchEvent(new Event("change"));
}

/** Whether an upload is under way whose field has left the page. */
export function isParkedAtStake() {
  return [...parked].some(({ items }) => items.some((item) => item.busy || item.state === "paused"));
}

/**
 * What earlier pages left that this field may show. `own` belongs here; `others` to another page, or was sent with a form before, and
 * is taken by a click only.
 *
 * @param {Claimant} claimant
 * @param {number} most of its own
 * @returns {Promise<{own: Remembered[], others: Remembered[]}>}
 */
export async function offers(claimant, most) {
  const all = await remembered(claimant);
  if (!claimants.has(claimant)) return { own: [], others: [] };
  const sent = sentBefore();
  const keys = new Set([...claimants].map(({ place }) => place.key));
  const { key, field } = claimant.place;
  const own = [];
  const others = [];
  for (const each of all) {
    const place = placeIn(each);
    const by = offered.get(each.key);
    if (place.key === key && !(each.isFinished && sent.has(each.key))) {
      if (own.length >= most || by === claimant) continue;
      by?.release(each.key);
      own.push(each);
    } else if (!by && place.field === field && (place.key === key || !keys.has(place.key))) {
      others.push(each);
    }
  }
  for (const each of [...own, ...others]) offered.set(each.key, claimant);
  return { own, others };
}

/** @param {Remembered} remembered @returns {Place} */
export function placeIn({ place }) {
  const { key = "", field = "", page = "", title = "" } = /** @type {Partial<Place>} */ (place ?? {});
  return { key, field, page, title };
}

/**
 * @param {Claimant} claimant
 * @returns {Promise<Remembered[]>}
 */
function remembered({ url, owner }) {
  const by = JSON.stringify([url, owner]);
  let answer = asked.get(by);
  if (!answer) {
    asked.set(by, (answer = read(url, owner, by)));
    setTimeout(() => asked.delete(by));
  }
  return answer;
}

/**
 * @param {string} url
 * @param {string} owner
 * @param {string} by
 */
async function read(url, owner, by) {
  if (!owner) return [];
  const uploader = uploaderOf(url);
  if (!cleaned.has(by)) {
    cleaned.add(by);
    void uploader.forgetOthers(owner); // another user has used this browser
  }
  const all = await uploader.remembered(owner);
  const receipts = all.flatMap(({ receipt }) => receipt ?? []).slice(0, MOST_ASKED);
  const usable = receipts.length ? (await ask(new URL(location.href), receipts))?.usable : undefined;
  if (!usable) return all;
  const over = all.filter(({ receipt }) => receipt && receipts.includes(receipt) && !usable.includes(receipt));
  for (const { key } of over) void uploader.forget(key);
  forgetSent(over.map(({ key }) => key));
  return all.filter((each) => !over.includes(each));
}
