/** What earlier pages left unfinished for one field: it goes on by itself where it belongs here and can be read, else the user is asked. */
import { Item } from "./item.js";
import { offers, park, placeIn } from "./places.js";
import { receiptOf } from "./receipts.js";
import { forgetSent } from "./sent.js";

export class Offers {
  /** By their upload's key. @type {Map<string, Item>} */
  #items = new Map();
  #selection;

  /** @param {import( "./selection.js").Selection} selection */
  constructor(selection) {
    this.#selection = selection;
  }

  get keys() {
    return this.#items.keys();
  }

  async show() {
    const selection = this.#selection;
    const { own, others } = await offers(selection, selection.field.isMany ? Infinity : 1);
    for (const unfinished of [...own, ...others]) {
      const { key, name, size } = unfinished;
      const place = placeIn(unfinished);
      const isOwn = own.includes(unfinished);
      const elsewhere = isOwn ? undefined : { ...place, title: place.key === selection.place.key ? "" : place.title || place.page };
      if (this.#isThere(unfinished) || (isOwn && !selection.field.isMany && selection.filled)) continue;
      const item = new Item({ name, size, unfinished, elsewhere });
      selection.put(item);
      this.#items.set(key, item);
      if (isOwn && unfinished.canContinue) void this.continue(item, true);
    }
    selection.field.change();
  }

  /** A form that came back with errors brought its receipt. @param {import( "../client.js").Remembered} finished */
  #isThere({ receipt, key }) {
    const item = this.#selection.items.find((each) => each.receipt && receiptOf(each) === receipt);
    if (!item) return false;
    item.keptKey = key;
    forgetSent([key]);
    return true;
  }

  /** That upload is no longer on offer here. @param {string} key */
  release(key) {
    const item = this.#items.get(key);
    if (item) this.#drop(item);
  }

  /**
   * @param {Item} item an offer
   * @param {boolean} [byItself] and not because the user has said so
   */
  async continue(item, byItself = false) {
    const selection = this.#selection;
    try {
      const upload = await item.unfinished?.continue();
      if (!upload) return;
      const file = upload.file instanceof File ? upload.file : undefined;
      const next = new Item({ name: upload.name, size: item.size, file, upload });
      if (selection.left) park(selection, [next]);
      else if (!selection.items.includes(item)) selection.discard([next]);
      else {
        this.#drop(item);
        if (byItself && !selection.field.isMany && selection.filled) selection.discard([next]); // the user has chosen another file
        else {
          if (!selection.field.isMany) selection.clear();
          selection.put(next);
        }
      }
    } catch {
      // The file is not there any more, or may not be read without a click: it stays on offer.
    }
    selection.field.change();
  }

  /** @param {Item} item */
  #drop(item) {
    const selection = this.#selection;
    selection.items = selection.items.filter((other) => other !== item);
    this.#items.delete(item.unfinished?.key ?? "");
  }
}
