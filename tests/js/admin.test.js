// The admin's live progress: one question for all that goes on, none when the page is hidden or nothing goes on.

import assert from "node:assert/strict";
import { beforeEach, mock, test } from "node:test";

const SOURCE = "../../src/django_async_upload/static/django_async_upload/admin.js";

/** Of a page, as much as the module looks at. */
class HTMLElement {
  constructor(id) {
    this.dataset = { upload: id, url: "/admin/progress/" };
    this.text = { textContent: "uploading, 1%" };
    this.bar = {
      value: 1,
      removeAttribute: (name) => {
        this.bar[name] = undefined;
      },
      remove: () => {
        this.bar = null;
      },
    };
  }

  querySelector(name) {
    return name === "span" ? this.text : this.bar;
  }
}

let places, asked, answers, listeners;

beforeEach(() => {
  mock.timers.reset();
  mock.timers.enable({ apis: ["setTimeout"] });
  [places, asked, answers, listeners] = [[], [], [], []];
  globalThis.HTMLElement = HTMLElement;
  globalThis.document = {
    hidden: false,
    baseURI: "https://example.org/admin/list/",
    querySelectorAll: () => places.filter((place) => place.dataset.upload),
    addEventListener: (_type, listener) => listeners.push(listener),
  };
  globalThis.fetch = async (url) => {
    asked.push(url.searchParams.getAll("id"));
    const answer = answers.length > 1 ? answers.shift() : answers[0];
    if (answer instanceof Error) throw answer;
    if (typeof answer === "number") return { ok: false, status: answer, type: "basic" };
    if (answer === "redirect") return { ok: false, status: 0, type: "opaqueredirect" };
    return { ok: true, status: 200, type: "basic", json: async () => answer };
  };
});

let loads = 0;
const settled = () => new Promise((resolve) => setImmediate(resolve));

async function load() {
  await import(`${SOURCE}?${(loads += 1)}`);
  await settled();
}

async function pass(milliseconds) {
  mock.timers.tick(milliseconds);
  await settled();
}

async function setHidden(hidden) {
  document.hidden = hidden;
  for (const listener of listeners) listener();
  await settled();
}

const at = (percent) => ({ text: `uploading, ${percent}%`, percent, active: true });
const DONE = { text: "completed", percent: null, active: false };

test("all that goes on is asked for at once and shown", async () => {
  places = [new HTMLElement("a"), new HTMLElement("b")];
  answers = [{ a: at(5), b: { text: "verifying", percent: null, active: true } }];
  await load();
  assert.deepEqual(asked, [["a", "b"]]);
  assert.equal(places[0].text.textContent, "uploading, 5%");
  assert.equal(places[0].bar.value, 5);
  assert.equal(places[1].text.textContent, "verifying");
  assert.equal(places[1].bar.value, undefined, "how long it takes is not known");
});

test("what is over, or gone, is not asked for again, and nothing is when all is", async () => {
  places = [new HTMLElement("a"), new HTMLElement("b"), new HTMLElement("c")];
  answers = [{ a: DONE, b: at(5) }, { b: DONE }];
  await load();
  assert.equal(places[0].text.textContent, "completed");
  assert.equal(places[0].bar, null);
  assert.equal(places[2].text.textContent, "–");
  await pass(2_000);
  assert.deepEqual(asked, [["a", "b", "c"], ["b"]]);
  await pass(600_000);
  assert.equal(asked.length, 2);
});

test("a page on which nothing goes on asks nothing", async () => {
  await load();
  await pass(600_000);
  assert.deepEqual(asked, []);
});

test("a hidden page asks nothing, and a page that becomes visible asks at once", async () => {
  places = [new HTMLElement("a")];
  answers = [{ a: at(5) }];
  document.hidden = true;
  await load();
  await pass(600_000);
  assert.equal(asked.length, 0);
  await setHidden(false);
  assert.equal(asked.length, 1);
  await setHidden(true);
  await pass(600_000);
  assert.equal(asked.length, 1);
  await setHidden(false);
  assert.equal(asked.length, 2);
});

test("where nothing changes it is asked less and less often, and soon again when it does", async () => {
  places = [new HTMLElement("a")];
  answers = [{ a: at(1) }];
  await load();
  for (let second = 0; second < 3600; second += 1) await pass(1_000);
  assert.ok(asked.length > 110 && asked.length < 140, `${asked.length} in an hour`);
  answers = [{ a: at(2) }];
  await pass(30_000);
  const before = asked.length;
  await pass(2_000);
  assert.equal(asked.length, before + 1);
});

for (const refusal of [403, 404, "redirect"]) {
  test(`who is answered with ${refusal} asks no more`, async () => {
    places = [new HTMLElement("a")];
    answers = [refusal];
    await load();
    await pass(600_000);
    assert.equal(asked.length, 1);
    assert.equal(places[0].text.textContent, "uploading, 1%");
  });
}

for (const [name, trouble] of [["a server that restarts", 502], ["a network that is gone", new TypeError()]]) {
  test(`${name} is asked again, later`, async () => {
    places = [new HTMLElement("a")];
    answers = [trouble, trouble, { a: at(7) }];
    await load();
    await pass(4_000);
    assert.equal(asked.length, 2);
    await pass(7_999);
    assert.equal(asked.length, 2);
    await pass(1);
    assert.equal(places[0].text.textContent, "uploading, 7%");
  });
}
