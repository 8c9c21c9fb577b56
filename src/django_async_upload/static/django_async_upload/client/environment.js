/** What the client needs of the browser beside files: one object, so that tests can bring a network and a clock of their own. */
import { Records } from "./records.js";

/**
 * @typedef {object} Environment
 * @property {new (url: string, protocols: string[]) => WebSocket} WebSocket
 * @property {() => number} now ms, monotonic
 * @property {(callback: () => void, ms: number) => number} setTimeout
 * @property {(timer: number) => void} clearTimeout
 * @property {() => number} random 0 to 1
 * @property {EventTarget} network dispatches `online`
 * @property {() => boolean} isOnline false: there is certainly no network
 * @property {(url: string) => Promise<boolean>} isServed whether HTTP gets through to a server that works
 * @property {EventTarget & {visibilityState: string}} page dispatches `visibilitychange`
 * @property {string} base what a relative URL is relative to
 * @property {Pick<Records, "put" | "delete" | "all" | "close">} records
 */

/** @returns {Environment} */
export function browser() {
  return {
    WebSocket,
    now: () => performance.now(),
    setTimeout: (callback, ms) => setTimeout(callback, ms),
    clearTimeout: (timer) => clearTimeout(timer),
    random: Math.random,
    network: window,
    isOnline: () => navigator.onLine,
    isServed,
    page: document,
    base: location.href,
    records: new Records(),
  };
}

/**
 * Any answer will do but that of a proxy that misses its server.
 *
 * @param {string} url
 */
async function isServed(url) {
  try {
    const { status } = await fetch(url, { method: "HEAD", cache: "no-store", redirect: "manual" });
    return status < 500;
  } catch {
    return false;
  }
}
