/**
 * In place of workers.js in the bundle, which is the script of its Workers too. `import.meta.url` is the address under which it
 * was loaded, with whatever hash: nothing has to find another file, and the browser has this one already.
 */
export const READER = "async-upload-reader";
export const SCALER = "async-upload-scaler";

export function startReader() {
  return start(READER);
}

export function startScaler() {
  return start(SCALER);
}

/** @param {string} name tells the Worker what it is for */
function start(name) {
  const here = import.meta.url;
  // HTML, "Workers": the script of a Worker has the page's origin. One of the page's own may import a module from elsewhere.
  const script = new URL(here).origin === location.origin ? here : importing(here);
  return new Worker(script, { type: "module", name });
}

/** @param {string} address */
function importing(address) {
  return URL.createObjectURL(new Blob([`import ${JSON.stringify(address)};`], { type: "text/javascript" }));
}
