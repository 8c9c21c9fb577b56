// Renders the pages as a server does.
import { readFile, writeFile } from "node:fs/promises";
import { StrictMode } from "react";
import { renderToString } from "react-dom/server";
import { createSSRApp } from "vue";
import { renderToString as renderVue } from "vue/server-renderer";
import { App } from "./App.jsx";
import VueApp from "./App.vue";

const rendered = {
  react: renderToString(<StrictMode><App /></StrictMode>),
  vue: await renderVue(createSSRApp(VueApp)),
};
for (const [page, html] of Object.entries(rendered)) {
  const empty = await readFile(`dist/${page}.html`, "utf8");
  await writeFile(`dist/${page}-rendered.html`, empty.replace("<!--rendered-->", html));
}
