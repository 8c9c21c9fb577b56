/** For Vue 3: a composable, and the element as a component. */
import { defineComponent, h, onMounted, onScopeDispose, shallowReadonly, shallowRef } from "vue";
import { EVENTS, elementAttributes, enhance, inputAttributes } from "./attributes.js";
import { Uploads } from "./uploads.js";

/** @import { ShallowRef } from "vue" */
/** @import { Upload, Uploader, UploaderOptions, UploadOptions } from "./client.js" */
/** @import { UploadView } from "./uploads.js" */
/** @import { AsyncUploadProps } from "./attributes.js" */
/** @import { AsyncUploadEvents } from "./events.js" */

/**
 * Uploads with an appearance of your own. They go on when the component leaves the page.
 *
 * @param {Uploader | UploaderOptions} source several components may share an uploader: make it where a server does not come by
 * @returns {{
 *   uploads: Readonly<ShallowRef<readonly UploadView[]>>,
 *   add: (files: Iterable<File | Blob | FileSystemFileHandle>, options?: UploadOptions) => Upload[],
 *   remove: (upload: Upload) => void,
 * }}
 */
export function useUploads(source) {
  const store = new Uploads(source);
  const uploads = shallowRef(store.views());
  onScopeDispose(store.subscribe(() => (uploads.value = store.views())));
  return { uploads: shallowReadonly(uploads), add: store.add, remove: store.remove };
}

/**
 * @typedef {object} Emits
 * @property {(detail: AsyncUploadEvents["async-upload-progress"]["detail"]) => void} progress
 * @property {(detail: AsyncUploadEvents["async-upload-state"]["detail"]) => void} state
 * @property {(detail: AsyncUploadEvents["async-upload-completed"]["detail"]) => void} completed
 * @property {(detail: AsyncUploadEvents["async-upload-error"]["detail"]) => void} error
 * @property {(detail: AsyncUploadEvents["async-upload-warning"]["detail"]) => void} warning
 */

const FLAG = { type: Boolean, default: undefined };
const PROPS = {
  ...{ name: String, id: String, url: String, field: String, owner: String, place: String, taker: String, accept: String, maxSize: Number, texts: Object },
  ...{ multiple: FLAG, directory: FLAG, disabled: FLAG, required: FLAG },
};

const Component = defineComponent({
  name: "AsyncUpload",
  props: PROPS,
  emits: Object.keys(EVENTS),
  setup(given, { emit }) {
    onMounted(() => void enhance());
    const listeners = Object.fromEntries(
      Object.entries(EVENTS).map(([name, event]) => [
        `on${event[0]?.toUpperCase()}${event.slice(1)}`,
        (/** @type {CustomEvent} */ { detail }) => emit(name, detail),
      ]),
    );
    return () => {
      const own = /** @type {AsyncUploadProps} */ (/** @type {unknown} */ (given));
      return h("async-upload", { ...elementAttributes(own), ...listeners }, [h("input", inputAttributes(own))]);
    };
  },
});

/**
 * `<async-upload>` with its input. Emits `progress`, `state`, `completed`, `error` and `warning` with the details of the element's
 * events.
 *
 * @type {import("vue").DefineSetupFnComponent<AsyncUploadProps, Emits>}
 */
export const AsyncUpload = /** @type {any} */ (Component);
