// Where the record comes from: the server's WebSocket, or the record inside this file. Calls `on` with what comes:
// head(head), chunk(chunk, bytes), ready(), end(why), lost(). docs/view.md has the messages.

import { inflate, unpackChunk } from "kd/recording.js";

export function connect(on) {
  const embedded = document.getElementById("record");
  if (embedded) return readEmbedded(embedded.textContent, on);
  return open(on, 0);
}

function open(on, tries) {
  const url = new URL("live", location.href);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  url.hash = "";
  const socket = new WebSocket(url);
  socket.binaryType = "arraybuffer";
  let queue = Promise.resolve(); // Chunks are decompressed one after the other: their order counts.
  let hasEnded = false;
  socket.onmessage = (message) => {
    queue = queue.then(async () => {
      if (typeof message.data !== "string") {
        const chunk = unpackChunk(new Uint8Array(message.data));
        if (chunk) on.chunk(chunk, await inflate(chunk));
        return;
      }
      const said = JSON.parse(message.data);
      if (said.kind === "head") on.head(said.head);
      else if (said.kind === "ready") on.ready();
      else if (said.kind === "end") {
        hasEnded = true;
        on.end(said.why);
      }
    });
  };
  socket.onopen = () => (tries = 0);
  socket.onclose = () => {
    if (hasEnded) return;
    on.lost();
    if (tries < 5) setTimeout(() => open(on, tries + 1), 200 * 2 ** tries);
  };
}

async function readEmbedded(base64, on) {
  const bytes = Uint8Array.from(atob(base64.trim()), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const headBytes = view.getUint32(12, true);
  on.head(JSON.parse(new TextDecoder().decode(bytes.subarray(16, 16 + headBytes))));
  for (let at = 16 + headBytes; ; ) {
    const chunk = unpackChunk(bytes, at);
    if (!chunk) break;
    on.chunk(chunk, await inflate(chunk));
    at += chunk.size;
  }
  on.ready();
  on.end("the record ends here");
}
