/** For React 18 and later: a hook, and the element as a component. */
import { createElement, useEffect, useRef, useState, useSyncExternalStore } from "react";
import { EVENTS, elementAttributes, enhance, inputAttributes } from "./attributes.js";
import { Uploads } from "./uploads.js";

/** @import { Upload, Uploader, UploaderOptions, UploadOptions } from "./client.js" */
/** @import { UploadView } from "./uploads.js" */
/** @import { AsyncUploadProps } from "./attributes.js" */
/** @import { AsyncUploadEvents } from "./events.js" */

/** @type {readonly UploadView[]} */
const NONE = [];

/**
 * Uploads with an appearance of your own. They go on when the component leaves the page.
 *
 * @param {Uploader | UploaderOptions} source what it is at first counts. Several components may share an uploader: make it where a
 *   server does not come by
 * @returns {{
 *   uploads: readonly UploadView[],
 *   add: (files: Iterable<File | Blob | FileSystemFileHandle>, options?: UploadOptions) => Upload[],
 *   remove: (upload: Upload) => void,
 * }}
 */
export function useUploads(source) {
  const [store] = useState(() => new Uploads(source));
  const uploads = useSyncExternalStore(store.subscribe, store.views, () => NONE);
  return { uploads, add: store.add, remove: store.remove };
}

/**
 * @typedef {object} Handlers
 * @property {(detail: AsyncUploadEvents["async-upload-progress"]["detail"]) => void} [onProgress]
 * @property {(detail: AsyncUploadEvents["async-upload-state"]["detail"]) => void} [onState]
 * @property {(detail: AsyncUploadEvents["async-upload-completed"]["detail"]) => void} [onCompleted]
 * @property {(detail: AsyncUploadEvents["async-upload-error"]["detail"]) => void} [onError]
 * @property {(detail: AsyncUploadEvents["async-upload-warning"]["detail"]) => void} [onWarning]
 */

/**
 * `<async-upload>` with its input. Give it a `key` to begin with another field in its place.
 *
 * @param {AsyncUploadProps & Handlers} props
 */
export function AsyncUpload(props) {
  const element = useRef(/** @type {HTMLElement | null} */ (null));
  const latest = useRef(props);
  latest.current = props;

  useEffect(() => {
    const { current } = element;
    const listening = new AbortController();
    for (const [name, event] of Object.entries(EVENTS)) {
      const prop = /** @type {keyof Handlers} */ (`on${name[0]?.toUpperCase()}${name.slice(1)}`);
      const listener = (/** @type {Event} */ happened) => {
        latest.current[prop]?.(/** @type {CustomEvent} */ (happened).detail);
      };
      current?.addEventListener(event, listener, { signal: listening.signal });
    }
    void enhance();
    return () => listening.abort();
  }, []);

  return createElement(
    "async-upload",
    { ref: element, ...elementAttributes(props) },
    createElement("input", inputAttributes(props)),
  );
}
