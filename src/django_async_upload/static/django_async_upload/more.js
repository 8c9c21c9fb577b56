/**
 * What a page can do without until it has a file: `async-upload-more.min.js`, loaded by the bundle. It gives what a field shows and
 * says beyond the rows of its files, and SHA-256, and in a Worker it makes small pictures.
 */
import { SCALER } from "./file/bundled-workers.js";
import { serveWorker } from "./file/scaling.js";

export { Sha256 } from "./file/sha256.js";
export { Extras } from "./widget/extras.js";

if ("WorkerGlobalScope" in globalThis && /** @type {any} */ (globalThis).name === SCALER) serveWorker();
