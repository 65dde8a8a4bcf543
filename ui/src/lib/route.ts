/** What the page shows, in the address's fragment: #/TENANT/CVLAN/NODE, by name. Links and the back button work. */
import { useSyncExternalStore } from "react";

export interface Route {
  tenant: string;
  cvlan: string;
  node: string;
}

/** Pages of the whole cluster stand where a tenant's slug would: no slug begins like this. */
export const ROUTE_CLUSTER = "~cluster";

export function routeParse(hash: string): Route {
  const parts = hash.replace(/^#\/?/, "").split("/");
  const part = (at: number) => {
    try {
      return decodeURIComponent(parts[at] ?? "");
    } catch {
      return "";
    }
  };
  return { tenant: part(0), cvlan: part(1), node: part(2) };
}

export function routeHref(tenant = "", cvlan = "", node = ""): string {
  const parts = [tenant, cvlan, node].map(encodeURIComponent);
  while (parts.length > 0 && parts.at(-1) === "") parts.pop();
  return `#/${parts.join("/")}`;
}

/** `replace`: without an entry in the history, for steps through a list. */
export function routeGo(href: string, replace = false): void {
  if (href === location.hash) return;
  if (!replace) {
    location.hash = href;
    return;
  }
  history.replaceState(null, "", href);
  window.dispatchEvent(new HashChangeEvent("hashchange"));
}

let parsed = { hash: "#", route: routeParse("") };

function snapshot(): Route {
  if (parsed.hash !== location.hash) parsed = { hash: location.hash, route: routeParse(location.hash) };
  return parsed.route;
}

function subscribe(listener: () => void): () => void {
  window.addEventListener("hashchange", listener);
  return () => window.removeEventListener("hashchange", listener);
}

export const useRoute = () => useSyncExternalStore(subscribe, snapshot);
