/** How events read: a sentence of plain text and things with names. */
import type { LogEvent } from "../api/types";

/** A thing that a sentence names; `id` is empty where it has none. */
export interface Thing {
  id: string;
  name: string;
}

export type Part = string | Thing;

/** What kind of change: for the colour and the mark of a line. */
export type Tone = "add" | "change" | "remove" | "quiet";

export interface Sentence {
  tone: Tone;
  parts: Part[];
}

/** The name under which this page knows an id, or a short form of the id. */
export type NameOf = (id: string) => string;

/** Says one kind of event; undefined where it is a verb that this page does not know yet. */
export type Describe = (event: LogEvent, nameOf: NameOf) => Sentence | undefined;

export const thing = (id: string | undefined, name: string): Thing => ({ id: id ?? "", name });

/** Who did it, as the door proved it. */
export function who(event: LogEvent, nameOf: NameOf): Thing {
  const { kind = "", id = "", name = "" } = event.actor ?? {};
  if (kind === "system" || kind === "") return thing("", "The cluster");
  return thing(id, name || (id ? nameOf(id) : kind));
}

export const sentenceText = (sentence: Sentence) =>
  sentence.parts.map((part) => (typeof part === "string" ? part : part.name)).join("");
