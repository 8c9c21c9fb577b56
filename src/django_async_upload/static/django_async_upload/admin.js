/**
 * Progress in the admin where no WebSocket tells it: asks how far the uploads are that the page shows as going on, until there
 * are none. `<async-upload-progress>` shows those that it can watch. Does nothing while the page is hidden.
 */

const PERIOD = 2_000;
const LONGEST_PERIOD = 30_000; // where nothing changes, or the server does not answer

/** @typedef {{text: string, percent: number | null, active: boolean}} Progress */

let period = PERIOD;
/** @type {number | undefined} */
let timer;
let asking = false;

/** @returns {HTMLElement[]} the places on the page where an upload goes on */
function active() {
  return [...document.querySelectorAll(".async-upload[data-upload]")].filter(
    (place) => place instanceof HTMLElement,
  );
}

/** @param {HTMLElement} place @returns {boolean} whether the element shows what the server tells */
function isLive(place) {
  return /** @type {{isLive?: boolean}} */ (place).isLive === true;
}

/**
 * @param {HTMLElement} place
 * @param {Progress | undefined} progress undefined for an upload that is gone
 * @returns {boolean} whether it differs from what was shown
 */
function show(place, progress) {
  const bar = place.querySelector("progress");
  const text = place.querySelector("span");
  const before = text?.textContent;
  if (progress === undefined || !progress.active) {
    delete place.dataset.upload;
    bar?.remove();
  } else if (bar !== null && progress.percent === null) {
    bar.removeAttribute("value");
  } else if (bar !== null) {
    bar.value = progress.percent ?? 0;
  }
  if (text !== null) {
    text.textContent = progress?.text ?? "–";
  }
  return text?.textContent !== before;
}

/**
 * @param {HTMLElement[]} places
 * @returns {Promise<boolean>} false when the server does not want to be asked again: signed out, or not allowed
 */
async function ask(places) {
  const url = new URL(places[0]?.dataset.url ?? "", document.baseURI);
  for (const place of places) {
    url.searchParams.append("id", place.dataset.upload ?? "");
  }
  const response = await fetch(url, {
    headers: { Accept: "application/json" },
    redirect: "manual",
    signal: AbortSignal.timeout(LONGEST_PERIOD),
  });
  if (response.type === "opaqueredirect" || (response.status >= 400 && response.status < 500)) {
    return false;
  }
  if (!response.ok) {
    throw new Error(`${response.status}`);
  }
  /** @type {Record<string, Progress>} */
  const found = await response.json();
  const changed = places.map((place) => show(place, found[place.dataset.upload ?? ""]));
  period = changed.includes(true) ? PERIOD : Math.min(1.5 * period, LONGEST_PERIOD);
  return true;
}

async function poll() {
  timer = undefined;
  const all = active();
  const places = all.filter((place) => !isLive(place));
  if (asking || document.hidden || all.length === 0) {
    return;
  }
  if (places.length === 0) {
    timer = setTimeout(poll, PERIOD); // the connection may be lost
    return;
  }
  asking = true;
  let again = true;
  try {
    again = await ask(places);
  } catch {
    period = Math.min(2 * period, LONGEST_PERIOD); // the server restarts, or the network is gone
  } finally {
    asking = false;
  }
  if (again && !document.hidden) {
    timer = setTimeout(poll, period);
  }
}

document.addEventListener("visibilitychange", () => {
  clearTimeout(timer);
  period = PERIOD;
  void poll();
});
if (globalThis.customElements?.get("async-upload-progress")) {
  timer = setTimeout(poll, PERIOD);
} else {
  void poll();
}

export {}; // without it, this is a module by its script tag only
