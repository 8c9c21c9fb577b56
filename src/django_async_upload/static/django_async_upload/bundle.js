/**
 * What pages load: one minified module, `async-upload.min.js`, built from here by `make bundle`. The element defines itself, the
 * exports are those of client.js and widget.js, and in a Worker of that name the same file reads.
 */
import { READER } from "./file/bundled-workers.js";
import { serveWorker } from "./file/reading.js";

export * from "./client.js";
export * from "./widget.js";

if ("WorkerGlobalScope" in globalThis && /** @type {any} */ (globalThis).name === READER) serveWorker();
