// Server-sent events from the body of a response (HTML living standard, section 9.2). EventSource cannot POST.

/** Yields {event, id, data}; throws what the connection throws. onBytes is called whenever something came. */
export async function* readEvents(body, onBytes = () => {}) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let fields = { event: "message", id: null, data: [] };
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      onBytes();
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const raw of lines) {
        const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
        if (line === "") {
          if (fields.data.length) yield { event: fields.event, id: fields.id, data: fields.data.join("\n") };
          fields = { event: "message", id: null, data: [] };
          continue;
        }
        const colon = line.indexOf(":");
        if (colon === 0) continue; // a comment: the server is still there
        const name = colon < 0 ? line : line.slice(0, colon);
        const text = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
        if (name === "data") fields.data.push(text);
        else if (name === "event") fields.event = text;
        else if (name === "id") fields.id = text;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
