/**
 * Which finished uploads went out with a form, so that no later page posts them again by itself. Whether the server took them is
 * another question: one that it did not take is not lost, but has to be asked for.
 */
const KEY = "async-upload-sent";
const MOST = 500;

/** @returns {string[]} keys of uploads, oldest first */
function read() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEY) ?? "[]");
    return Array.isArray(kept) ? kept : [];
  } catch {
    return []; // the user or a policy has blocked storage
  }
}

/** @param {string[]} keys */
function write(keys) {
  try {
    if (keys.length) localStorage.setItem(KEY, JSON.stringify(keys.slice(-MOST)));
    else localStorage.removeItem(KEY);
  } catch {
    // No storage, or no room in it.
  }
}

/** @param {string[]} keys of uploads whose receipts are posted now */
export function noteSent(keys) {
  if (keys.length) write([...new Set([...read(), ...keys])]);
}

/** @param {string[]} keys of uploads that are over, or may be posted again */
export function forgetSent(keys) {
  const before = read();
  const gone = new Set(keys);
  const after = before.filter((key) => !gone.has(key));
  if (after.length < before.length) write(after);
}

/** @returns {Set<string>} keys of uploads */
export function sentBefore() {
  return new Set(read());
}
