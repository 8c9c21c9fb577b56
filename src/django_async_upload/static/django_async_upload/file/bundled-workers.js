/**
 * In place of workers.js in the bundle, which is the script of the Worker that reads, too. `import.meta.url` is the address under
 * which it was loaded, with whatever hash: nothing has to find another file, and the browser has this one already.
 *
 * What few pages need is in a second file, more.js. Its name has a hash where that of the bundle has one: the file never
 * changes without the bundle, so which hash Django's storages give it is known when the bundle is made.
 */
export const READER = "async-upload-reader";

export function startReader() {
  return start(import.meta.url, READER);
}

export function startScaler() {
  return start(more(), "async-upload-scaler");
}

/** @returns {string} the address of the second file */
export function more() {
  const hashed = `.${/** @type {any} */ (globalThis).MORE_HASH}`; // put in by build.mjs
  return import.meta.url.replace(/\.min(\.[0-9a-f]{12})?\.js/, (_, hash) => `-more.min${hash ? hashed : ""}.js`);
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
