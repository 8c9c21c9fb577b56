/** Long work in slices, so that the page stays quick meanwhile. */

/** Milliseconds of work at a time: half of what a page has for one of 60 pictures a second. */
export const SLICE = 8;

/**
 * Do something with each item: with the first ones at once, with those for which there is no time in tasks of their own.
 *
 * @template T
 * @param {Iterable<T>} items
 * @param {(item: T) => boolean | void} work false: enough
 * @param {() => void} [pausing] called before each pause
 */
export async function inSlices(items, work, pausing = () => undefined) {
  let begin = performance.now();
  for (const item of items) {
    if (performance.now() - begin > SLICE) {
      pausing();
      await nextTask();
      begin = performance.now();
    }
    if (work(item) === false) {
      return;
    }
  }
}

/** Not `setTimeout`: in a tab in the background it waits for a second, and later for a minute. */
function nextTask() {
  const { port1, port2 } = new MessageChannel();
  return new Promise((resolve) => {
    port1.onmessage = () => {
      port1.close();
      resolve(undefined);
    };
    port2.postMessage(null);
  });
}
