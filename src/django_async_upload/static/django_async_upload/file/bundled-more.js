/**
 * Loads the second file of the bundle, more.js. Its name has a hash where that of the bundle has one: the file never changes
 * without the bundle, so which hash Django's storages give it is known when the bundle is made.
 */
let failures = 0;

/**
 * @returns {Promise<typeof import( "../more.js")>}
 * @throws {TypeError} where the file cannot be loaded; it may be asked for again
 */
export async function loadMore() {
  const hashed = `.${/** @type {any} */ (globalThis).MORE_HASH}`; // put in by build.mjs
  const address = import.meta.url.replace(/\.min(\.[0-9a-f]{12})?\.js/, (_, hash) => `-more.min${hash ? hashed : ""}.js`);
  try {
    // Firefox remembers, for each address with its fragment, that a module could not be loaded.
    return await import(failures ? `${address}#${failures}` : address);
  } catch (error) {
    failures += 1;
    throw error;
  }
}
