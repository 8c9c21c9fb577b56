/**
 * Starts the Workers from the modules beside this one. The form of these calls is what bundlers look for. The app's own bundle
 * has another module in place of this one, in which the bundle is the Worker's script as well.
 */

/** @returns {Worker} reads files: see reading.js. Throws where there can be none. */
export function startReader() {
  return new Worker(new URL("../reader-worker.js", import.meta.url), { type: "module" });
}

/** @returns {Worker} makes small pictures: see scaling.js. Throws where there can be none. */
export function startScaler() {
  return new Worker(new URL("../preview-worker.js", import.meta.url), { type: "module" });
}
