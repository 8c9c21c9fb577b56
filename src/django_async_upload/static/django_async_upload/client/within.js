/** How long an upload waits for IndexedDB and Web Locks, without which it goes on, too. */

/** Milliseconds; some browsers have left requests unanswered for ever. */
export const PATIENCE = 1_000;

/**
 * The result of a service of the browser, or what stands in for it where that fails or takes too long.
 *
 * @template T, O
 * @param {Pick<import( "./environment.js").Environment, "setTimeout" | "clearTimeout">} environment
 * @param {Promise<T>} service
 * @param {O} otherwise
 * @param {(result: T) => void} [late] gets a result that comes too late
 * @returns {Promise<T | O>} never rejects
 */
export function within(environment, service, otherwise, late = () => undefined) {
  return new Promise((resolve) => {
    let isLate = false;
    const timer = environment.setTimeout(() => {
      isLate = true;
      resolve(otherwise);
    }, PATIENCE);
    service.then(
      (result) => {
        environment.clearTimeout(timer);
        if (isLate) {
          late(result);
        }
        resolve(result);
      },
      () => {
        environment.clearTimeout(timer);
        resolve(otherwise);
      },
    );
  });
}
