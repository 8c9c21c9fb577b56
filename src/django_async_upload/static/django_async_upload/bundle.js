/**
 * What pages load: everything in one minified module, `async-upload.min.js`, built from here by `make bundle`. The element defines
 * itself, the exports are those of client.js and widget.js, and in a Worker of that name the same file reads or makes pictures.
 */
import { serveWorker as read } from "./file/reading.js";
import { serveWorker as scale } from "./file/scaling.js";
import { READER, SCALER } from "./file/bundled-workers.js";

export * from "./client.js";
export * from "./widget.js";

if ("WorkerGlobalScope" in globalThis) {
  const { name } = /** @type {{name?: unknown}} */ (globalThis);
  if (name === READER) read();
  if (name === SCALER) scale();
}
