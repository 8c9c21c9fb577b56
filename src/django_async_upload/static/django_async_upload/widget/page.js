/** What the elements of one page share towards the server: one Uploader, so one socket, for each address, and the user's login. */
import { Uploader } from "../client.js";

/** @type {Map<string, Uploader>} */
const uploaders = new Map();

const LOOK_AGAIN = 30_000; // ms
const login = new EventTarget();
/** Logins that have ended since the page was loaded: with a new one the CSRF token is another. */
let ended = 0;
/** Forms whose token is newer than so many of them. @type {WeakMap<HTMLFormElement, number>} */
const renewed = new WeakMap();

/** @param {string} url of the WebSocket */
export function uploaderOf(url) {
  let uploader = uploaders.get(url);
  if (!uploader) uploaders.set(url, (uploader = new Uploader({ url, authenticate })));
  return uploader;
}

/**
 * A login has ended (or, without an error, soon will). There is no ticket: the user signs in, most likely in another tab,
 * and the cookie is valid again. So the server is asked again whenever the user comes back to this tab.
 * @param {unknown} error
 * @returns {Promise<undefined>}
 */
async function authenticate(error) {
  if (!error) return;
  ended += 1;
  await new Promise((resolve) => {
    const again = new AbortController();
    const look = () => {
      if (document.visibilityState === "hidden") return;
      again.abort();
      clearInterval(timer);
      resolve(undefined);
    };
    const timer = setInterval(look, LOOK_AGAIN);
    document.addEventListener("visibilitychange", look, { signal: again.signal });
    window.addEventListener("focus", look, { signal: again.signal });
    login.addEventListener("again", look, { signal: again.signal });
  });
}

/** Whether a login has ended since the form has got its CSRF token. @param {HTMLFormElement} form */
export function isTokenOld(form) {
  return ended > (renewed.get(form) ?? 0);
}

/** @param {HTMLFormElement} form has a new token */
export function tokenRenewed(form) {
  renewed.set(form, ended);
}

/** The user says that they have signed in. */
export function signedIn() {
  login.dispatchEvent(new Event("again"));
}
