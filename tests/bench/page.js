// What `tests.bench.browser` runs in the page: the contestants, and how long the main thread was held up meanwhile.
import { Uploader } from "../static/django_async_upload/client.js";

const file = () => document.querySelector("input").files[0];

/** Upload with this client; the ticket is for a page without a login. */
async function ours({ url, ticket }) {
  const uploader = new Uploader({ url, authenticate: async () => ticket, remember: false });
  try {
    const { size } = await uploader.add(file()).result;
    return size;
  } finally {
    uploader.close();
  }
}

/** Thousands of files at once with this client: how long it takes is no matter here. */
async function many({ url, ticket, files, size }) {
  const made = [];
  while (made.length < files) {
    made.push(new File([new Uint8Array(size).fill(made.length)], `${made.length}.bin`));
    if (made.length % 100 === 0) {
      await new Promise((resolve) => setTimeout(resolve)); // making them shall not be what is measured
    }
  }
  const uploader = new Uploader({ url, authenticate: async () => ticket, remember: false });
  try {
    const results = await Promise.all(made.map((each) => uploader.add(each).result));
    return results.reduce((sum, result) => sum + result.size, 0);
  } finally {
    uploader.close();
  }
}

/** tus-js-client as its documentation shows it; `step` is the size of a PATCH in bytes, 0 for one of everything. */
function tus({ url, step }) {
  return new Promise((resolve, reject) => {
    const upload = new globalThis.tus.Upload(file(), {
      endpoint: url,
      chunkSize: step || Infinity,
      storeFingerprintForResuming: false,
      onError: reject,
      onSuccess: () => resolve(upload.file.size),
    });
    upload.start();
  });
}

/** A form, sent as most pages send one. */
function form({ url }) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", url);
    request.onload = () => (request.status === 201 ? resolve(file().size) : reject(new Error(request.responseText)));
    request.onerror = () => reject(new Error("the request failed"));
    const body = new FormData();
    body.append("file", file());
    request.send(body);
  });
}

/** One request after the other, each with `step` bytes: how most libraries for large files send them. */
async function slices({ url, step }) {
  const whole = file();
  for (let offset = 0; offset < whole.size; offset += step) {
    await new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      request.open("POST", url);
      request.onload = () => (request.status === 201 ? resolve() : reject(new Error(request.responseText)));
      request.onerror = () => reject(new Error("the request failed"));
      const body = new FormData();
      body.append("file", whole.slice(offset, offset + step), `${offset}.bin`);
      request.send(body);
    });
  }
  return whole.size;
}

/** Calls `each` with the milliseconds for which the main thread was not free, until the function it returns is called. */
function watch(each) {
  const { port1, port2 } = new MessageChannel();
  let running = true;
  let before = performance.now();
  const beat = setInterval(() => port2.postMessage(null), 5);
  port1.onmessage = () => {
    const now = performance.now();
    if (running) {
      each(now - before - 5);
    }
    before = now;
  };
  return () => {
    running = false;
    clearInterval(beat);
    port1.close();
  };
}

/**
 * One upload.
 *
 * @returns {Promise<{seconds: number, size: number, task: number, gap: number, heap: number}>} longest task as the browser tells
 *   it (0: none above 50 ms) and longest gap between two beats of a timer, milliseconds; bytes of JavaScript's heap at the end
 */
globalThis.measure = async (contestant, options) => {
  let task = 0;
  let gap = 0;
  const observer = new PerformanceObserver((list) => {
    task = Math.max(task, ...list.getEntries().map(({ duration }) => duration));
  });
  observer.observe({ type: "longtask" });
  const stop = watch((milliseconds) => (gap = Math.max(gap, milliseconds)));
  const begun = performance.now();
  const size = await { ours, many, tus, form, slices }[contestant](options);
  const seconds = (performance.now() - begun) / 1000;
  stop();
  observer.disconnect();
  return { seconds, size, task, gap, heap: performance.memory?.usedJSHeapSize ?? 0 };
};
globalThis.ready = true;
