/** One line a noun: how its list folds, and how its events read. */
import type { LogEvent } from "../api/types";
import type { Fold } from "../live/fold";
import { cvlanDescribe, cvlanFold } from "./cvlan/model";
import { memberDescribe } from "./member/model";
import { nodeDescribe, nodeFold } from "./node/model";
import { type Describe, type NameOf, type Sentence, who } from "./sentence";
import { systemDescribe } from "./system/model";
import { tenantDescribe, tenantFold } from "./tenant/model";
import { tokenDescribe, tokenFold } from "./token/model";
import { userDescribe } from "./user/model";

/** By the first word of a query key. */
// biome-ignore lint/suspicious/noExplicitAny: a list's own type is known only to its noun
export const FOLDS: Readonly<Record<string, Fold<any>>> = {
  tenants: tenantFold,
  cvlans: cvlanFold,
  nodes: nodeFold,
  tokens: tokenFold,
};

type Noun = "system" | "tenant" | "cvlan" | "node" | "token" | "user" | "member";

const DESCRIBES: Readonly<Record<Noun, Describe>> = {
  system: systemDescribe,
  tenant: tenantDescribe,
  cvlan: cvlanDescribe,
  node: nodeDescribe,
  token: tokenDescribe,
  user: userDescribe,
  member: memberDescribe,
};

export const NOUNS = Object.keys(DESCRIBES) as Noun[];

export const eventNoun = (event: LogEvent): Noun | undefined => NOUNS.find((noun) => event[noun]);

/** The sentence for any event; a newer controller's events, which this page does not know, by their names. */
export function eventSentence(event: LogEvent, nameOf: NameOf): Sentence {
  const noun = eventNoun(event);
  const sentence = noun && DESCRIBES[noun](event, nameOf);
  if (sentence) return sentence;
  const verb = noun && Object.keys(event[noun] ?? {})[0];
  return { tone: "change", parts: [who(event, nameOf), `: ${noun ? [noun, verb].filter(Boolean).join(" ") : "?"}`] };
}
