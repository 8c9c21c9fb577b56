/**
 * What few pages need: `async-upload-more.min.js`, loaded by the bundle when it is asked for. It gives SHA-256, and in a Worker it
 * makes small pictures.
 */
import { serveWorker } from "./file/scaling.js";

export { Sha256 } from "./file/sha256.js";

if ("WorkerGlobalScope" in globalThis && /** @type {any} */ (globalThis).name === "async-upload-scaler") serveWorker();
