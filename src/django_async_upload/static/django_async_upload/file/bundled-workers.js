/**
 * In place of workers.js in the bundle, each of whose two files is the script of a Worker, too: the first reads, the second makes
 * pictures. `import.meta.url` is the address under which a file was loaded, with whatever hash: the browser has it already.
 */
export const READER = "async-upload-reader";
export const SCALER = "async-upload-scaler";

export function startReader() {
  return start(import.meta.url, READER);
}

export function startScaler() {
  return start(import.meta.url, SCALER);
}

/**
 * @param {string} address of the page's own script
 * @param {string} name tells the Worker what it is for
 */
function start(address, name) {
  // HTML, "Workers": the script of a Worker has the page's origin. One of the page's own may import a module from elsewhere.
  const script = new URL(address).origin === location.origin ? address : importing(address);
  return new Worker(script, { type: "module", name });
}

/** @param {string} address */
function importing(address) {
  return URL.createObjectURL(new Blob([`import ${JSON.stringify(address)};`], { type: "text/javascript" }));
}
