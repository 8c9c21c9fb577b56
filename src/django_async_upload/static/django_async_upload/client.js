/**
 * The browser client: resumable, verified uploads to a Django site, over one WebSocket for any number of files.
 *
 *     import { Uploader } from "django-resumable-upload";
 *
 *     const uploader = new Uploader({ url: "/ws/uploads/" });
 *     const upload = uploader.add(input.files[0]);
 *     upload.addEventListener("progress", ({ detail }) => (bar.value = detail.fraction));
 *     const { id, receipt } = await upload.result;
 *
 * Types are named by `import( "./x.js")`, with a space: so Django's storage, which gives modules hashed names, does not take
 * them for dependencies. Types go in circles; modules do not.
 *
 * @typedef {import( "./client/uploader.js").UploaderOptions} UploaderOptions
 * @typedef {import( "./client/uploader.js").Remembered} Remembered
 * @typedef {import( "./client/life.js").UploadState} UploadState
 * @typedef {import( "./client/upload.js").UploadOptions} UploadOptions
 * @typedef {import( "./client/meter.js").Progress} Progress
 * @typedef {import( "./client/upload.js").Result} Result
 */
export { Uploader } from "./client/uploader.js";
export { Upload } from "./client/upload.js";
export { UploadError } from "./protocol/errors.js";
