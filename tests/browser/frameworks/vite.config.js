import vue from "@vitejs/plugin-vue";
import { defineConfig } from "vite";

const pages = ["client", "react", "vue", "uppy", "tus"];

export default defineConfig(({ isSsrBuild }) => ({
  base: "/apps/",
  plugins: [vue({ template: { compilerOptions: { isCustomElement: (tag) => tag === "async-upload" } } })],
  build: isSsrBuild ? {} : { rolldownOptions: { input: pages.map((page) => `${page}.html`) } },
}));
