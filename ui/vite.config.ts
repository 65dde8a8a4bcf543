/// <reference types="vitest/config" />
import tailwindcss from "@tailwindcss/vite";
import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

export default defineConfig({
  // Relative addresses: the page works wherever the controller mounts it.
  base: "./",
  plugins: [react(), tailwindcss()],
  build: {
    target: "es2023",
    // Nothing inline: the Content-Security-Policy allows 'self' alone.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    reportCompressedSize: true,
  },
  server: {
    // A controller of this machine; its certificate is from its own CA.
    proxy: { "/api": { target: process.env.CVLAN_URL ?? "https://127.0.0.1:8443", secure: false } },
  },
  test: { include: ["src/**/*.test.ts"], environment: "node" },
});
