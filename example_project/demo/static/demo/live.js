/** Keeps the list of uploads as the server has it: asks every second, while somebody looks. */
const live = document.getElementById("live");
const unreachable = document.getElementById("unreachable");
const PERIOD = 1_000; // ms
let timer;
let asking = false;

async function ask() {
  clearTimeout(timer);
  if (document.hidden || asking) return;
  asking = true;
  try {
    const answer = await fetch(live.dataset.url, { redirect: "manual", signal: AbortSignal.timeout(10_000) });
    if (answer.type === "opaqueredirect") return location.reload(); // signed out
    if (!answer.ok) throw new Error(answer.statusText);
    show(new DOMParser().parseFromString(await answer.text(), "text/html"));
    say(unreachable, "");
  } catch {
    say(unreachable, unreachable.dataset.text);
  } finally {
    asking = false;
  }
  timer = setTimeout(ask, PERIOD);
}

/** Touches what has changed, and nothing else: a focus stays, and a screen reader hears news only. */
function show(page) {
  say(document.getElementById("counts"), page.getElementById("counts").textContent);
  const list = document.getElementById("uploads");
  const items = [...page.getElementById("uploads").children].map((item) => {
    const old = document.getElementById(item.id);
    return old?.isEqualNode(item) ? old : document.adoptNode(item);
  });
  if (items.some((item, index) => item !== list.children[index]) || items.length !== list.children.length) {
    list.replaceChildren(...items);
  }
}

function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

document.addEventListener("visibilitychange", ask);
ask();
