// Builds what is shipped from the modules in src/django_async_upload/static/django_async_upload.
//
//     node js/build.mjs bundle           write async-upload.min.js, its source map and the styles beside the modules
//     node js/build.mjs bundle FOLDER    the same into another folder
//     node js/build.mjs check            fail unless what is there is what would be written
import { mkdir, readFile, writeFile } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const HERE = path.dirname(fileURLToPath(import.meta.url));
const APP = path.resolve(HERE, "../src/django_async_upload");
const SOURCES = path.join(APP, "static/django_async_upload");
/** The oldest that have what the modules use: docs/reference/browsers.md. */
const TARGETS = ["chrome105", "firefox121", "safari16.5"];

async function version() {
  const [, found] = /^__version__ = "(.+)"$/m.exec(await readFile(path.join(APP, "__init__.py"), "utf8"));
  return found;
}

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
  const scripts = await build({
    ...common,
    entryPoints: ["bundle.js"],
    outfile: path.join(SOURCES, "async-upload.min.js"),
    format: "esm",
    banner: { js: banner },
    sourcemap: "linked",
    sourcesContent: false, // the modules lie beside it
    plugins: [
      {
        name: "the bundle is its own Worker",
        setup({ onResolve }) {
          const workers = path.join(SOURCES, "file/bundled-workers.js");
          onResolve({ filter: /\/workers\.js$/ }, () => ({ path: workers }));
        },
      },
    ],
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
  const files = [scripts, styles, admin].flatMap(({ outputFiles }) => outputFiles);
  return new Map(files.map((each) => [path.relative(SOURCES, each.path), each.contents]));
}

const [task, folder = SOURCES] = process.argv.slice(2);
if (task === "bundle") {
  await mkdir(folder, { recursive: true });
  for (const [name, contents] of await bundle()) await writeFile(path.join(folder, name), contents);
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
  console.error("Usage: node js/build.mjs bundle [FOLDER] | check");
  process.exitCode = 2;
}
