/** The Worker in which files are read: see file/reading.js. */
import { serve } from "./file/reading.js";

/** Where this entry was loaded from: its name may carry a hash that only the server's storage knows. */
export const url = import.meta.url;

if ("WorkerGlobalScope" in globalThis) {
  const scope = /** @type {import( "./file/reading.js").Port & {onmessage: unknown}} */ (/** @type {unknown} */ (globalThis));
  const receive = serve(scope);
  scope.onmessage = (/** @type {MessageEvent<import( "./file/reading.js").Request>} */ { data }) => receive(data);
  scope.postMessage({ type: "loaded" }, []);
}
