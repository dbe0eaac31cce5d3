import { defineConfig } from "vite";

// Every address in what is built is relative: the server may be below any prefix. Nothing is put
// inline, for the page's policy allows scripts and styles from files alone.
export default defineConfig({
  base: "./",
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  build: {
    outDir: "../app/web",
    emptyOutDir: true,
    assetsDir: "page",
    assetsInlineLimit: 0,
    target: "es2022",
    modulePreload: { polyfill: false },
    sourcemap: false,
    reportCompressedSize: false,
    license: false,
  },
});
