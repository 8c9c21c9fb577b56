/** In place of extras-loader.js in the bundle. */
import { Backoff } from "../client/backoff.js";
import { loadMore } from "../file/bundled-more.js";

const backoff = new Backoff({ first: 2000, largest: 300_000 });
/** @type {Promise<typeof import( "./extras.js").Extras> | undefined} */
let loading;

/**
 * Tried again until it succeeds: the network may be gone, or a deploy has removed the files of a page that was left open.
 * @returns {Promise<typeof import( "./extras.js").Extras>} the same for all fields of the page
 */
export function loadExtras() {
  return (loading ??= load());
}

async function load() {
  for (;;) {
    try {
      return (await loadMore()).Extras;
    } catch {
      await new Promise((resolve) => setTimeout(resolve, backoff.delay()));
    }
  }
}
