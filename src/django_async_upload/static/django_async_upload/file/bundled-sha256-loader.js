/** In place of sha256-loader.js in the bundle. */
import { more } from "./bundled-workers.js";

/** @returns {Promise<typeof import( "./sha256.js").Sha256>} */
export async function loadSha256() {
  const { Sha256 } = await import(more());
  return Sha256;
}
