/** SHA-256, which few uploads ask for. The app's own bundle has another module in place of this one, and the code in another file. */
import { Sha256 } from "./sha256.js";

/** @returns {Promise<typeof Sha256>} */
export async function loadSha256() {
  return Sha256;
}
