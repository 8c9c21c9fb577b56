// Which files an `accept` lets through, and folders of the older interface; the rest needs a browser.
import assert from "node:assert/strict";
import { test } from "node:test";
import {
  fromInput,
  fromTransfer,
  hasFiles,
  matches,
} from "../../src/django_async_upload/static/django_async_upload/widget/files.js";

const file = (name, type = "") => new File(["x"], name, { type });

for (const [name, type, accept, fits] of [
  ["a.pdf", "application/pdf", "", true],
  ["a.pdf", "application/pdf", ".pdf", true],
  ["A.PDF", "", ".pdf", true],
  ["a.pdf.exe", "", ".pdf", false],
  ["pdf", "", ".pdf", false],
  ["a.png", "image/png", "image/*", true],
  ["a.png", "IMAGE/PNG", " Image/* , .pdf", true],
  ["a.png", "imagex/png", "image/*", false],
  ["a.txt", "text/plain;charset=utf-8", "text/plain", true],
  ["a.txt", "text/plain", "text/html,.md", false],
  ["a", "", "*/*", true],
]) {
  test(`${name} (${type}) ${fits ? "fits" : "does not fit"} "${accept}"`, () => {
    assert.equal(matches(file(name, type), accept), fits);
  });
}

test("an input's files keep their path within a folder", () => {
  const inside = Object.assign(file("b.txt"), { webkitRelativePath: "folder/b.txt" });
  const picked = fromInput({ files: [file("a.txt"), inside] });
  assert.deepEqual(picked.map(({ path }) => path), ["a.txt", "folder/b.txt"]);
});

test("dragged text is not a file", () => {
  assert.ok(hasFiles({ types: ["text/plain", "Files"] }));
  assert.ok(!hasFiles({ types: ["text/plain"] }));
  assert.ok(!hasFiles(null));
});

/** A folder as webkitGetAsEntry gives it: at most a hundred entries at a time. */
function folder(name, entries) {
  const createReader = () => {
    let position = 0;
    return {
      readEntries(resolve) {
        resolve(entries.slice(position, (position += 100)));
      },
    };
  };
  return { name, isDirectory: true, createReader };
}

const entry = (name) => ({
  name,
  isDirectory: false,
  file: (resolve, reject) =>
    name.startsWith("locked") ? reject(new Error("no")) : resolve(file(name)),
});

test("a dropped folder gives all that is in it, beyond the first hundred", async () => {
  const many = Array.from({ length: 250 }, (_, number) => entry(`${number}.txt`));
  const tree = folder("a", [...many, folder("b", [entry("deep.txt"), entry("locked.txt")])]);
  const items = [
    { kind: "string" },
    { kind: "file", getAsFile: () => null, webkitGetAsEntry: () => tree },
    { kind: "file", getAsFile: () => file("single.txt"), webkitGetAsEntry: () => entry("single.txt") },
  ];
  const failed = [];
  const picked = await fromTransfer({ items }, (path) => failed.push(path));
  assert.equal(picked.length, 252);
  assert.equal(new Set(picked.map(({ path }) => path)).size, 252);
  assert.ok(picked.some(({ path }) => path === "a/b/deep.txt"));
  assert.equal(picked.at(-1).path, "single.txt");
  assert.deepEqual(failed, ["a/b/locked.txt"]);
});

test("handles are kept where the browser gives them", async () => {
  const handle = (name) => ({ kind: "file", name, getFile: async () => file(name) });
  const inner = { kind: "directory", name: "in", values: () => [handle("y.txt")].values() };
  const tree = { kind: "directory", name: "top", values: () => [inner, handle("x.txt")].values() };
  const items = [tree, handle("z.txt")].map((each) => ({
    kind: "file",
    getAsFile: () => (each.kind === "file" ? file(each.name) : null),
    getAsFileSystemHandle: async () => each,
  }));
  const picked = await fromTransfer({ items });
  assert.deepEqual(
    picked.map(({ path, handle }) => [path, handle.name]),
    [
      ["top/in/y.txt", "y.txt"],
      ["top/x.txt", "x.txt"],
      ["z.txt", "z.txt"],
    ],
  );
});
