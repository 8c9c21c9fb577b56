/**
 * Stands in for client.js on the widget's test page: uploads that do what the test says (`window.uploads[0].complete()`), so that
 * every state can be held still and looked at. It keeps to the interface of the real one and to nothing else.
 */
export class UploadError extends Error {
  constructor(code, { message = code, facts = {}, retryable = false } = {}) {
    super(message);
    Object.assign(this, { code, facts, retryable });
  }
}

let keys = 0;

export class Upload extends EventTarget {
  #deferred = Promise.withResolvers();

  constructor(file, options) {
    super();
    const { name = file.name } = options;
    const { size, type } = file;
    const progress = { sent: 0, received: 0, durable: 0, size, fraction: 0, rate: 0 };
    Object.assign(this, { file, name, size, type, options, progress, state: "queued", error: null, calls: [] });
    this.key = options.key ?? `key-${++keys}`;
    this.field = options.field ?? "";
    this.#deferred.promise.catch(() => {});
  }

  get result() {
    return this.#deferred.promise;
  }

  go(state) {
    const previous = this.state;
    if (state === previous) return;
    this.state = state;
    this.#tell("state", { state, previous });
  }

  move(fraction, more = {}) {
    if (this.state !== "uploading") this.go("uploading");
    const received = Math.round(fraction * this.size);
    this.progress = { ...this.progress, fraction, received, sent: received, durable: received, ...more };
    this.#tell("progress", this.progress);
  }

  complete(receipt = `receipt of ${this.name}`) {
    this.progress = { ...this.progress, fraction: 1, received: this.size };
    const result = { id: this.key, name: this.name, size: this.size, storedAs: this.name, digests: {}, receipt };
    this.#deferred.resolve(result);
    this.go("completed");
    this.#tell("completed", { result });
  }

  fail(code, options) {
    this.error = new UploadError(code, options);
    this.#deferred.reject(this.error);
    this.go("failed");
    this.#tell("error", { error: this.error });
  }

  pause() {
    this.calls.push("pause");
    this.go("paused");
  }

  resume() {
    this.calls.push("resume");
    this.go("uploading");
  }

  cancel() {
    this.calls.push("cancel");
    this.go("cancelled");
  }

  discard() {
    this.calls.push("discard");
  }

  retry() {
    this.calls.push("retry");
    this.error = null;
    this.#deferred = Promise.withResolvers();
    this.go("queued");
  }

  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

export class Uploader extends EventTarget {
  uploads = [];
  connection = "idle";

  constructor(options) {
    super();
    this.options = options;
    this.unreachable = false;
    window.uploaders.push(this);
  }

  add(what, options = {}) {
    const upload = new Upload(what instanceof File ? what : new File([], what.name), options);
    this.uploads.push(upload);
    window.uploads.push(upload);
    return upload;
  }

  async remembered(owner = "") {
    const own = (window.unfinished ?? []).filter((one) => (one.owner ?? "me") === owner);
    return own.filter(({ key }) => !this.uploads.some((upload) => upload.key === key)).map((one) => ({
      sent: 0,
      field: "",
      type: "",
      isFinished: false,
      canContinue: false,
      lastModified: 0,
      ...one,
      continue: async () => {
        await one.wait;
        if (one.denied) throw new DOMException("no permission", "NotAllowedError");
        const options = { key: one.key, field: one.field ?? "token" };
        const upload = this.add(new File(["x".repeat(one.size)], one.name), options);
        if (one.isFinished) upload.complete(one.receipt);
        return upload;
      },
      discard: async () => void window.discarded.push(one.key),
    }));
  }

  async forget(key) {
    window.forgotten.push(key);
  }

  async forgetOthers(owner) {
    window.keptOwner = owner;
  }

  warn(code, message) {
    console.warn(`django-resumable-upload: ${message}`);
    this.dispatchEvent(new CustomEvent("warning", { detail: { code, message } }));
  }

  /** Whether WebSockets get through. */
  reach(isReached) {
    this.unreachable = !isReached;
    this.dispatchEvent(new CustomEvent("unreachable", { detail: { unreachable: !isReached } }));
  }

  close() {}
}

Object.assign(window, { uploads: [], uploaders: [], discarded: [], forgotten: [] });
