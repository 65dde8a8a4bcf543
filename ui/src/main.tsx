import { QueryClient, QueryClientProvider } from "@tanstack/react-query";
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { problemOf } from "./api/problem";
import { App } from "./app";
import "./app.css";

/** Reads that got no answer, or a member's failure, are repeated; a refusal is final. */
const RETRIES = 2;

const client = new QueryClient({
  defaultOptions: {
    queries: {
      // The event stream keeps lists fresh (live/live.ts); the browser's own idea of being online says nothing here.
      staleTime: Number.POSITIVE_INFINITY,
      refetchOnWindowFocus: false,
      refetchOnReconnect: false,
      networkMode: "always",
      retry: (failures, error) => {
        const { status } = problemOf(error);
        return failures < RETRIES && (status === 0 || status >= 500);
      },
    },
    mutations: { networkMode: "always" },
  },
});

const root = document.getElementById("root");
if (root) {
  createRoot(root).render(
    <StrictMode>
      <QueryClientProvider client={client}>
        <App />
      </QueryClientProvider>
    </StrictMode>,
  );
}
