/** In place of sha256-loader.js in the bundle. */
import { loadMore } from "./bundled-more.js";

/** @returns {Promise<typeof import( "./sha256.js").Sha256>} */
export async function loadSha256() {
  return (await loadMore()).Sha256;
}
