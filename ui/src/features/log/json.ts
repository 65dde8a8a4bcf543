/** JSON text in pieces, for colour. */

export interface JsonPiece {
  kind: "key" | "text" | "other" | "plain";
  text: string;
}

const TOKEN = /("(?:[^"\\]|\\.)*")(\s*:)?|\b(?:true|false|null)\b|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;

/** The pieces joined are the text again. */
export function jsonPieces(json: string): JsonPiece[] {
  const pieces: JsonPiece[] = [];
  let from = 0;
  for (const match of json.matchAll(TOKEN)) {
    if (match.index > from) pieces.push({ kind: "plain", text: json.slice(from, match.index) });
    const [all, quoted, colon] = match;
    if (quoted !== undefined && colon !== undefined) {
      pieces.push({ kind: "key", text: quoted }, { kind: "plain", text: colon });
    } else {
      pieces.push({ kind: quoted === undefined ? "other" : "text", text: all });
    }
    from = match.index + all.length;
  }
  if (from < json.length) pieces.push({ kind: "plain", text: json.slice(from) });
  return pieces;
}
