// Builds what is shipped from the modules in src/django_async_upload/static/django_async_upload.
//
//     node js/build.mjs bundle           write async-upload.min.js, its source map and the styles beside the modules
//     node js/build.mjs bundle FOLDER    the same into another folder
//     node js/build.mjs check            fail unless what is there is what would be written
//     node js/build.mjs package          make js/package, the folder that npm packs: the modules as they are, with types
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { appendFile, copyFile, cp, mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { build } from "esbuild";
import { minify } from "terser";

const HERE = path.dirname(fileURLToPath(import.meta.url));
const APP = path.resolve(HERE, "../src/django_async_upload");
const SOURCES = path.join(APP, "static/django_async_upload");
/** The oldest that have what the modules use: docs/reference/browsers.md. */
const TARGETS = ["chrome111", "firefox121", "safari16.4"];

async function version() {
  const [, found] = /^__version__ = "(.+)"$/m.exec(await readFile(path.join(APP, "__init__.py"), "utf8"));
  return found;
}

const MODULES_OF_THE_BUNDLE = {
  name: "modules of the bundle alone",
  setup({ onResolve }) {
    onResolve({ filter: /\/(workers|[\w-]+-loader|error-texts)\.js$/ }, ({ path: name, resolveDir }) => ({
      path: path.join(resolveDir, path.dirname(name), `bundled-${path.basename(name)}`),
    }));
    // The page brings the texts, in its language.
    onResolve({ filter: /\/english\.js$/ }, () => ({ path: path.join(SOURCES, "widget/no-texts.js") }));
  },
};

/** @returns {Promise<Map<string, Uint8Array>>} name -> content of each file of the bundle */
async function bundle() {
  const common = {
    absWorkingDir: SOURCES,
    bundle: true,
    minify: true,
    write: false,
    target: TARGETS,
    logLevel: "warning",
  };
  const banner = `/*! django-resumable-upload ${await version()}, BSD-3-Clause */`;
  const scripts = { ...common, format: "esm", banner: { js: banner }, plugins: [MODULES_OF_THE_BUNDLE] };
  const more = await build({
    ...scripts,
    entryPoints: ["more.js"],
    outfile: path.join(SOURCES, "async-upload-more.min.js"),
  });
  // As Django's ManifestFilesMixin.file_hash() has it, for a file in which it has nothing to replace.
  const hash = createHash("md5").update(more.outputFiles[0].contents).digest("hex").slice(0, 12);
  const first = await build({
    ...scripts,
    entryPoints: ["bundle.js"],
    outfile: path.join(SOURCES, "async-upload.min.js"),
    sourcemap: "linked",
    sourcesContent: false, // the modules lie beside it
    define: { "globalThis.MORE_HASH": JSON.stringify(hash) },
  });
  const progress = await build({
    ...scripts,
    entryPoints: ["progress.js"],
    outfile: path.join(SOURCES, "async-upload-progress.min.js"),
  });
  const styles = await build({
    ...common,
    entryPoints: ["widget.css"],
    outfile: path.join(SOURCES, "async-upload.min.css"),
    banner: { css: banner },
  });
  const admin = await build({
    ...common,
    stdin: { contents: '@import "./widget.css"; @import "./admin.css";', resolveDir: SOURCES, loader: "css" },
    outfile: path.join(SOURCES, "async-upload-admin.min.css"),
    banner: { css: banner },
  });
  const files = [first, more, progress, styles, admin].flatMap(({ outputFiles }) => outputFiles);
  const found = new Map(files.map((each) => [path.relative(SOURCES, each.path), each.contents]));
  await squeeze(found, "async-upload.min.js", banner);
  return found;
}

/** What terser still finds behind esbuild: two of a hundred bytes. */
async function squeeze(files, name, preamble) {
  const text = (file) => Buffer.from(files.get(file)).toString();
  const { code, map } = await minify(text(name), {
    module: true,
    // gzip finds more alike where statements and calls stay as they are.
    compress: { passes: 3, ecma: 2020, unsafe_arrows: true, sequences: false, inline: 1 },
    format: { comments: false, preamble },
    sourceMap: { content: text(`${name}.map`), url: `${name}.map` },
  });
  files.set(name, Buffer.from(`${code}\n`));
  files.set(`${name}.map`, Buffer.from(map));
}

/** What is of the pages that Django serves only. */
const NOT_PACKED = /(^|\/)(bundle|more|bundled-[\w-]+|no-texts|admin|.*\.min)\.(js|css|js\.map)$/;
/** Hand-written types, and the entries that bring them along. */
const TYPES = { "events.d.ts": ["client", "widget", "progress"], "react-elements.d.ts": ["react"] };

async function makePackage() {
  const folder = path.join(HERE, "package");
  await rm(folder, { recursive: true, force: true });
  await cp(SOURCES, folder, { recursive: true, filter: (name) => !NOT_PACKED.test(name) });
  for (const name of await readdir(HERE)) {
    if (/\.(js|d\.ts)$/.test(name)) await copyFile(path.join(HERE, name), path.join(folder, name));
  }
  await copyFile(path.join(HERE, "README.md"), path.join(folder, "README.md"));
  await copyFile(path.join(HERE, "../LICENSE"), path.join(folder, "LICENSE"));
  const { private: _private, devDependencies: _tools, ...facts } = JSON.parse(
    await readFile(path.join(HERE, "package.json"), "utf8"),
  );
  facts.version = await version();
  await writeFile(path.join(folder, "package.json"), `${JSON.stringify(facts, null, 2)}\n`);

  const tsc = path.join(HERE, "node_modules/.bin/tsc");
  await promisify(execFile)(tsc, ["--project", HERE]).catch(({ stdout }) => {
    throw new Error(stdout);
  });
  for (const [types, entries] of Object.entries(TYPES)) {
    for (const entry of entries) {
      const line = `export type * from "./${types.replace(".d.ts", ".js")}";\n`;
      await appendFile(path.join(folder, `${entry}.d.ts`), line);
    }
  }
}

const [task, folder = SOURCES] = process.argv.slice(2);
if (task === "bundle") {
  await mkdir(folder, { recursive: true });
  for (const [name, contents] of await bundle()) await writeFile(path.join(folder, name), contents);
} else if (task === "package") {
  await makePackage();
} else if (task === "check") {
  const stale = [];
  for (const [name, contents] of await bundle()) {
    const there = await readFile(path.join(folder, name)).catch(() => Buffer.alloc(0));
    if (!there.equals(contents)) stale.push(name);
  }
  if (stale.length) {
    console.error(`Not what the modules give: ${stale.join(", ")}. Run: make bundle`);
    process.exitCode = 1;
  }
} else {
  console.error("Usage: node js/build.mjs bundle [FOLDER] | check | package");
  process.exitCode = 2;
}
