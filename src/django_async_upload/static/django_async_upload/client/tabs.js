/**
 * Two tabs of one site never drive the same upload: the one that does holds a Web Lock of its name, which the browser takes back
 * when the page ends, however it ends. Where there are no Web Locks (no secure context, an old browser) nothing stands
 * between tabs but the server, which lets the newest connection win.
 */

const PREFIX = "async-upload:";

/** @returns {LockManager | undefined} */
function locks() {
  return globalThis.navigator?.locks;
}

/**
 * This tab alone drives the upload with this key, until the function that it gets is called or the page ends.
 *
 * @param {string} key
 * @returns {Promise<(() => void) | null>} null: another tab drives it, or this one already does
 */
export function claim(key) {
  return new Promise((resolve) => {
    const unlocked = () => resolve(() => undefined);
    const manager = locks();
    if (manager === undefined) {
      unlocked();
      return;
    }
    manager
      .request(PREFIX + key, { ifAvailable: true }, (lock) => {
        if (lock === null) {
          resolve(null);
          return undefined;
        }
        return new Promise((release) => {
          resolve(() => release(undefined));
        });
      })
      // An opaque origin, a sandboxed frame for example, may not have locks.
      .catch(unlocked);
  });
}

/**
 * The keys that some tab drives now, this one too.
 *
 * @returns {Promise<Set<string>>} empty where there are no Web Locks
 */
export async function claimed() {
  try {
    const { held = [] } = (await locks()?.query()) ?? {};
    const names = held.map(({ name }) => name ?? "").filter((name) => name.startsWith(PREFIX));
    return new Set(names.map((name) => name.slice(PREFIX.length)));
  } catch {
    return new Set();
  }
}
