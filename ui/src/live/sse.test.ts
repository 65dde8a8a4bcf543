import { describe, expect, it } from "vitest";
import { SSE_MESSAGE_MAX, SseParser, sseRead } from "./sse";

const STREAM = 'id: 7\nevent: event\ndata: {"seq":"7"}\n\n: keep-alive\n\nevent: presence\ndata: {"nodeId":"n"}\n\n';

describe("SseParser", () => {
  it("reads the same messages however the stream is cut", () => {
    const whole = new SseParser().push(STREAM);
    expect(whole).toEqual([
      { id: "7", event: "event", data: '{"seq":"7"}' },
      { id: "7", event: "presence", data: '{"nodeId":"n"}' },
    ]);
    for (let cut = 0; cut <= STREAM.length; cut += 1) {
      const parser = new SseParser();
      expect([...parser.push(STREAM.slice(0, cut)), ...parser.push(STREAM.slice(cut))]).toEqual(whole);
    }
  });

  it.each([
    ["CRLF", "data: a\r\n\r\n", [{ id: "", event: "message", data: "a" }]],
    ["no blank after the colon", "data:a\n\n", [{ id: "", event: "message", data: "a" }]],
    ["several data lines", "data: a\ndata: b\n\n", [{ id: "", event: "message", data: "a\nb" }]],
    ["an unknown field", "retry: 10\ndata: a\n\n", [{ id: "", event: "message", data: "a" }]],
    ["an event without data", "event: x\n\n", []],
    ["no end", "data: a\n", []],
  ])("%s", (_, text, messages) => {
    expect(new SseParser().push(text)).toEqual(messages);
  });

  it("bounds one message", () => {
    const parser = new SseParser();
    expect(() => {
      for (let i = 0; i < 3; i += 1) parser.push(`data: ${"x".repeat(SSE_MESSAGE_MAX / 2)}\n`);
    }).toThrow(RangeError);
  });
});

describe("sseRead", () => {
  it("ends when nothing comes for too long", async () => {
    const encoder = new TextEncoder();
    const body = new ReadableStream<Uint8Array>({ start: (c) => c.enqueue(encoder.encode("data: a\n\ndata: é")) });
    const seen: string[] = [];
    for await (const batch of sseRead(body, 20, new AbortController().signal)) seen.push(...batch.map((m) => m.data));
    expect(seen).toEqual(["a"]);
  });

  it("joins characters cut between chunks", async () => {
    const bytes = new TextEncoder().encode("data: é\n\n");
    const body = new ReadableStream<Uint8Array>({
      start(c) {
        c.enqueue(bytes.slice(0, 7));
        c.enqueue(bytes.slice(7));
        c.close();
      },
    });
    const seen: string[] = [];
    for await (const batch of sseRead(body, 1000, new AbortController().signal)) seen.push(...batch.map((m) => m.data));
    expect(seen).toEqual(["é"]);
  });
});
