import assert from "node:assert/strict";
import { test } from "node:test";

import { Formats } from "../../src/django_async_upload/static/django_async_upload/widget/formats.js";
import { mayRetry, reason, refusal, typesOf } from "../../src/django_async_upload/static/django_async_upload/widget/reasons.js";
import { ENGLISH as TEXTS } from "../../src/django_async_upload/static/django_async_upload/widget/english.js";
import { fill, join, textsFrom } from "../../src/django_async_upload/static/django_async_upload/widget/texts.js";
import { CODES } from "../../src/django_async_upload/static/django_async_upload/protocol/errors.js";
import { matches } from "../../src/django_async_upload/static/django_async_upload/widget/files.js";

const english = new Formats("en");
const MIB = 1024 * 1024;

test("own texts go over the defaults, and nothing else gets in", () => {
  const texts = textsFrom('{"pause": "Anhalten", "unknown": "x", "resume": 5}');
  assert.equal(texts.pause, "Anhalten");
  assert.equal(texts.resume, TEXTS.resume);
  assert.equal("unknown" in texts, false);
  assert.equal(Object.isFrozen(texts), true);
  assert.throws(() => textsFrom("{"), SyntaxError);
  assert.deepEqual(textsFrom(null), TEXTS);
});

test("values are put in as they are, and a placeholder without one stays", () => {
  assert.equal(fill("{sent} of {size}", { sent: "$&", size: "2" }), "$& of 2");
  assert.equal(fill("{sent} of {other}", { sent: "1" }), "1 of {other}");
  assert.equal(fill("{constructor}", {}), "{constructor}");
});

test("a value is kept apart where both directions of writing meet, and only there", () => {
  assert.equal(fill("Removed: {name}", { name: "a.pdf" }), "Removed: a.pdf");
  assert.equal(fill("Removed: {name}", { name: "ملف.pdf" }), "Removed: \u2068ملف.pdf\u2069");
  assert.equal(fill("{name} הוסר", { name: "a.pdf" }), "\u2068a.pdf\u2069 הוסר");
  assert.equal(join(["1", "", "2"]), "1 · 2");
  assert.equal(join(["1", "ב"]), "\u20681\u2069 · \u2068ב\u2069");
});

test("sizes are written as Django's filesizeformat writes them", () => {
  const sizes = [0, 1, 1023, 1024, 1536, 100 * 1024, 5 * MIB, 1.5 * 1024 * MIB].map((size) => english.size(size));
  assert.deepEqual(sizes, ["0 bytes", "1 byte", "1,023 bytes", "1.0 KB", "1.5 KB", "100.0 KB", "5.0 MB", "1.5 GB"]);
  assert.equal(new Formats("de").size(1.5 * MIB), "1,5 MB");
  assert.equal(new Formats("fr", { ...TEXTS, megabytes: "%s Mio" }).size(1.5 * MIB), "1,5 Mio");
  assert.equal(english.rate(2.4 * MIB), "2.4 MB/s");
});

test("a size that exceeds its limit by less than a digit shows is written to the byte, and so is the limit", () => {
  const [size, limit] = [10 * 1024 * MIB + 1, 10 * 1024 * MIB];
  assert.deepEqual(english.sizeAndLimit(size, limit), { size: "10,737,418,241 bytes", limit: "10,737,418,240 bytes" });
  assert.deepEqual(english.sizeAndLimit(2 * MIB, MIB), { size: "2.0 MB", limit: "1.0 MB" });
});

test("times are as coarse as a user needs them", () => {
  const times = [0.2, 40.4, 59.6, 60, 150, 3599, 3600, 7800, 40_000].map((seconds) => english.time(seconds));
  const expected = ["1 sec", "40 sec", "1 min", "1 min", "3 min", "1 hr", "1 hr", "2 hr 10 min", "11 hr"];
  assert.deepEqual(times, expected);
});

test("a hundred per cent is not said before everything is there", () => {
  assert.equal(english.percent(0.999), "99%");
  assert.equal(english.percent(1), "100%");
});

test("an invalid language tag falls back to the browser's", () => {
  assert.equal(typeof new Formats("not a tag!").count(5), "string");
});

test("every error of the protocol has a sentence, and none shows a developer's message but a host's refusal", () => {
  const hosts = new Set(["upload_refused", "file_refused"]);
  const generic = new Set();
  for (const code of CODES.keys()) {
    const text = reason({ code, message: "for developers", facts: {} }, { size: 5 }, TEXTS, english);
    assert.doesNotMatch(text, /[{}]/, code);
    if (text.includes("for developers") && !hosts.has(code)) generic.add(code);
  }
  // What only a bug or an unknown newer server can cause keeps its own words: they are for the report.
  const bugs = ["upload_error", "protocol_violation", "malformed_frame", "unexpected_message", "unknown_stream", "flow_control"];
  const rest = ["too_many_streams", "metadata_invalid", "key_reused", "upload_failed"];
  assert.deepEqual([...generic].sort(), [...bugs, ...rest].sort());
});

test("too large says how large and what is allowed", () => {
  const error = { code: "file_too_large", message: "", facts: { max_size: MIB } };
  assert.equal(reason(error, { size: 2 * MIB }, TEXTS, english), "This file is too large (2.0 MB). At most 1.0 MB is allowed.");
  assert.equal(reason({ ...error, facts: {} }, { size: 1 }, TEXTS, english), "This file is too large.");
});

test("a damaged or ended upload may be tried again by hand, a refused one not", () => {
  assert.equal(mayRetry({ code: "busy", retryable: true }), true);
  assert.equal(mayRetry({ code: "data_lost", retryable: false }), true);
  assert.equal(mayRetry({ code: "type_refused", retryable: false }), false);
});

test("what the page knows is refused before anything is sent", () => {
  const file = new File(["12345"], "a.exe", { type: "application/x-msdownload" });
  const check = (/** @type {object} */ limits) =>
    refusal(file, { maxSize: 0, accept: "", ...limits }, TEXTS, english, matches);
  assert.equal(check({}), "");
  assert.equal(check({ maxSize: 5 }), "");
  assert.match(check({ maxSize: 4 }), /too large \(5 bytes\)/);
  assert.equal(check({ accept: ".EXE" }), "");
  assert.match(check({ accept: "image/*, application/pdf" }), /Allowed: images, PDF$/);
});

test("types are named as people call them", () => {
  const accept = "image/*,video/*,audio/*, .Pdf ,image/png,application/vnd.ms-excel,";
  const expected = "images, videos, sound recordings, .pdf, PNG, application/vnd.ms-excel";
  assert.equal(typesOf(accept, TEXTS), expected);
});

test("types keep their order and their dots in a sentence from right to left", () => {
  const arabic = /** @type {typeof TEXTS} */ ({ ...TEXTS, images: "الصور" });
  assert.equal(typesOf(".pdf,image/*", arabic), "\u2068.pdf\u2069, \u2068الصور\u2069");
});
