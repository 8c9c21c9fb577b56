/**
 * Keeps the list of uploads as the server has it. The server tells over a WebSocket what changes; the page then asks for the list, at
 * most once a second, and asks every second where no WebSocket gets through.
 */
import { Watcher } from "../django_async_upload/async-upload-progress.min.js";

const live = document.getElementById("live");
const unreachable = document.getElementById("unreachable");
const PERIOD = 1_000; // ms
const watcher = new Watcher({ scope: "own" });
/** What the server has told of uploads under way: more than the list, which has what is durable. */
const received = new Map();
let timer;
let asking = false;

function askSoon() {
  timer ??= setTimeout(ask, PERIOD);
}

async function ask() {
  clearTimeout(timer);
  timer = undefined;
  if (document.hidden) return;
  if (asking) return askSoon();
  asking = true;
  let answered = false;
  try {
    const answer = await fetch(live.dataset.url, { redirect: "manual", signal: AbortSignal.timeout(10_000) });
    if (answer.type === "opaqueredirect") return location.reload(); // signed out
    if (!answer.ok) throw new Error(answer.statusText);
    show(new DOMParser().parseFromString(await answer.text(), "text/html"));
    say(unreachable, "");
    answered = true;
  } catch {
    say(unreachable, unreachable.dataset.text);
  } finally {
    asking = false;
  }
  if (!answered || !watcher.isLive) askSoon();
}

/** Touches what has changed, and nothing else: a focus stays, and a screen reader hears news only. */
function show(page) {
  say(document.getElementById("counts"), page.getElementById("counts").textContent);
  const list = document.getElementById("uploads");
  for (const item of page.querySelectorAll("#uploads > li")) move(item);
  const items = [...page.getElementById("uploads").children].map((item) => {
    const old = document.getElementById(item.id);
    return old?.isEqualNode(item) ? old : document.adoptNode(item);
  });
  if (items.some((item, index) => item !== list.children[index]) || items.length !== list.children.length) {
    list.replaceChildren(...items);
  }
}

/** Set the bar of an upload to what was received of it. */
function move(item) {
  const bar = item?.querySelector("progress");
  if (bar) bar.value = Math.max(bar.value, received.get(item.id) ?? 0);
}

function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

watcher.addEventListener("changed", ({ detail }) => {
  for (const standing of detail.standings) {
    received.set(`upload-${standing.upload}`, standing.received ?? standing.durable);
    move(document.getElementById(`upload-${standing.upload}`));
  }
  askSoon();
});
watcher.addEventListener("live", askSoon);
document.addEventListener("visibilitychange", ask);
ask();
