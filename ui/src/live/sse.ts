/**
 * Server-sent events out of a fetch() body (WHATWG HTML, 9.2.6). EventSource cannot send an Authorization header.
 * The parser is fed text and holds what is incomplete; it does no I/O.
 */

export interface SseMessage {
  id: string;
  event: string;
  data: string;
}

/** A message longer than this is no event of ours: the stream is given up. */
export const SSE_MESSAGE_MAX = 1 << 20;

export class SseParser {
  #rest = "";
  #data: string[] = [];
  #event = "";
  #id = "";
  #size = 0;

  /** The messages that this text completes. Comments (keep-alives) complete none. */
  push(text: string): SseMessage[] {
    const messages: SseMessage[] = [];
    this.#rest += text;
    let from = 0;
    for (;;) {
      const end = this.#rest.indexOf("\n", from);
      if (end < 0) break;
      const line = this.#rest.slice(from, this.#rest[end - 1] === "\r" ? end - 1 : end);
      from = end + 1;
      this.#line(line, messages);
    }
    this.#rest = this.#rest.slice(from);
    if (this.#rest.length + this.#size > SSE_MESSAGE_MAX) throw new RangeError("event stream: message too long");
    return messages;
  }

  #line(line: string, messages: SseMessage[]): void {
    if (line === "") {
      if (this.#data.length > 0) {
        messages.push({ id: this.#id, event: this.#event || "message", data: this.#data.join("\n") });
      }
      this.#data = [];
      this.#event = "";
      this.#size = 0;
      return;
    }
    const colon = line.indexOf(":");
    if (colon === 0) return;
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1);
    this.#size += line.length;
    if (field === "data") this.#data.push(value);
    else if (field === "event") this.#event = value;
    else if (field === "id") this.#id = value;
  }
}

/** Message batches, one per chunk that brought any. Throws after `silenceMs` without a byte. */
export async function* sseRead(
  body: ReadableStream<Uint8Array>,
  silenceMs: number,
  signal: AbortSignal,
): AsyncGenerator<SseMessage[]> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  const parser = new SseParser();
  const stop = () => void reader.cancel().catch(() => undefined);
  signal.addEventListener("abort", stop);
  try {
    for (;;) {
      const timer = setTimeout(stop, silenceMs);
      const { done, value } = await reader.read().finally(() => clearTimeout(timer));
      if (done) return;
      const messages = parser.push(decoder.decode(value, { stream: true }));
      if (messages.length > 0) yield messages;
    }
  } finally {
    signal.removeEventListener("abort", stop);
    stop();
  }
}
