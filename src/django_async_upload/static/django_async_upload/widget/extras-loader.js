/** The app's own bundle has another module in place of this one, and the code in another file. */
import { Extras } from "./extras.js";

/** @returns {Promise<typeof Extras>} */
export async function loadExtras() {
  return Extras;
}
