/** For Uppy 6: a plugin that uploads over the WebSocket, in place of `@uppy/tus` or `@uppy/xhr-upload`. */
import { BasePlugin } from "@uppy/core";
import { Uploader } from "./client.js";

/** @import { Body, Meta, PluginOpts, Uppy, UppyFile } from "@uppy/core" */
/** @import { Progress, Result, Upload, UploaderOptions } from "./client.js" */

/**
 * @typedef {UploaderOptions & PluginOpts & {
 *   taker?: "api" | "receiver",
 * }} AsyncUploadPluginOptions `taker`: who takes the finished files, see the documentation; default `api`
 */

/**
 * `upload-success` comes with the upload's `Result` as `response.body`: its `receipt` is what an API takes in place of the file.
 *
 * @template {Meta} M
 * @template {Body} B
 * @extends {BasePlugin<AsyncUploadPluginOptions, M, B>}
 */
export class AsyncUploadPlugin extends BasePlugin {
  /** @type {Uploader | null} */
  #uploader = null;
  /** By the id of Uppy's file: a failed one is tried again, not sent anew. @type {Map<string, Upload>} */
  #uploads = new Map();

  /**
   * @param {Uppy<M, B>} uppy
   * @param {AsyncUploadPluginOptions} options
   */
  constructor(uppy, options) {
    super(uppy, options);
    this.id = options.id || "AsyncUpload";
    this.type = "uploader";
  }

  install() {
    this.#resumable(true);
    this.uppy.addUploader(this.#upload);
    this.uppy.on("upload-pause", this.#pause);
    this.uppy.on("pause-all", this.#pauseAll);
    this.uppy.on("resume-all", this.#resumeAll);
    this.uppy.on("file-removed", this.#remove);
  }

  uninstall() {
    this.#resumable(false);
    this.uppy.removeUploader(this.#upload);
    this.uppy.off("upload-pause", this.#pause);
    this.uppy.off("pause-all", this.#pauseAll);
    this.uppy.off("resume-all", this.#resumeAll);
    this.uppy.off("file-removed", this.#remove);
    this.#uploader?.close();
    this.#uploader = null;
    this.#uploads.clear();
  }

  /** @param {boolean} resumableUploads whether Uppy shows buttons to pause */
  #resumable(resumableUploads) {
    const { capabilities } = this.uppy.getState();
    this.uppy.setState({ capabilities: { ...capabilities, resumableUploads } });
  }

  /** @param {string[]} ids */
  #upload = async (ids) => {
    const files = this.uppy.getFilesByIds(ids).filter((file) => !file.error || this.#uploads.has(file.id));
    this.uppy.emit("upload-start", files);
    await Promise.all(files.map((file) => this.#send(file)));
  };

  /** @param {UppyFile<M, B>} file */
  async #send(file) {
    const earlier = this.#uploads.get(file.id);
    try {
      earlier?.retry();
      const result = await (earlier ?? this.#begin(file)).result;
      this.#uploads.delete(file.id);
      const response = { status: 200, body: /** @type {any} */ (result), bytesUploaded: result.size };
      this.uppy.emit("upload-success", this.uppy.getFile(file.id), response);
    } catch (error) {
      // One that was removed has failed as well, and Uppy knows nothing of it any longer.
      if (this.uppy.getFile(file.id)) this.uppy.emit("upload-error", file, /** @type {Error} */ (error));
    }
  }

  /** @param {UppyFile<M, B>} file @returns {Upload} */
  #begin(file) {
    if (file.isRemote || !file.data) throw new Error("Only files of this device can be uploaded.");
    this.#uploader ??= new Uploader(this.opts);
    const { taker = "api" } = this.opts;
    const upload = this.#uploader.add(file.data, { name: file.name, metadata: { ...file.meta, taker } });
    this.#uploads.set(file.id, upload);
    const uploadStarted = Date.now();
    upload.addEventListener("progress", (event) => {
      const { received, size } = /** @type {CustomEvent<Progress>} */ (event).detail;
      const now = this.uppy.getFile(file.id);
      if (now) this.uppy.emit("upload-progress", now, { uploadStarted, bytesUploaded: received, bytesTotal: size });
    });
    return upload;
  }

  /** @type {(file: UppyFile<M, B> | undefined, isPaused: boolean) => void} */
  #pause = (file, isPaused) => {
    const upload = this.#uploads.get(file?.id ?? "");
    if (isPaused) upload?.pause();
    else upload?.resume();
  };
  #pauseAll = () => this.#uploads.forEach((upload) => upload.pause());
  #resumeAll = () => this.#uploads.forEach((upload) => upload.resume());

  /** @type {(file: UppyFile<M, B>) => void} */
  #remove = ({ id }) => {
    this.#uploads.get(id)?.cancel();
    this.#uploads.delete(id);
  };
}
