/**
 * `<async-upload-progress>`, and the `Watcher` behind it, for pages that show uploads which they do not send: the file
 * `async-upload-progress.min.js`. A page that only uploads does not load it.
 *
 * @typedef {import( "./client/watcher.js").Standing} Standing
 * @typedef {import( "./client/watcher.js").WatcherOptions} WatcherOptions
 */
import { AsyncUploadProgressElement } from "./widget/progress-element.js";

export { Watcher } from "./client/watcher.js";
export { AsyncUploadProgressElement };

// The first one stays where a page loads this module a second time.
if (globalThis.customElements && !customElements.get("async-upload-progress")) {
  customElements.define("async-upload-progress", AsyncUploadProgressElement);
}
