// Talks to the service, and to nobody else.

const TOKEN = "sottovoce-session";

export class Problem extends Error {
  constructor(content) {
    super(content.detail);
    this.kind = (content.type ?? "").replace("urn:sottovoce:problem:", "");
    this.wayOut = content.way_out ?? "";
    this.status = content.status ?? 0;
    this.value = content.value ?? "";
  }
}

// Survives a reload and an installed app's next window; it is worth nothing once the service ends.
export const token = () => localStorage.getItem(TOKEN) ?? "";
export const forgetToken = () => localStorage.removeItem(TOKEN);

export async function openSession(key) {
  const { token: made } = await ask("POST", "/v1/session", { key });
  localStorage.setItem(TOKEN, made);
}

export async function ask(method, path, content, type = "application/json") {
  const headers = { Authorization: `Bearer ${token()}` };
  const options = { method, headers, cache: "no-store" };
  if (content !== undefined) {
    headers["Content-Type"] = type;
    options.body = content instanceof Blob ? content : JSON.stringify(content);
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Problem({ type: "service-gone", status: 0, detail: "" });
  }
  const kind = answer.headers.get("Content-Type") ?? "";
  if (!answer.ok) {
    const told = kind.includes("json") ? await answer.json() : { detail: answer.statusText };
    throw new Problem({ ...told, status: answer.status });
  }
  if (answer.status === 204) return null;
  return kind.includes("json") ? answer.json() : answer.blob();
}

export function openStream(rate) {
  const address = `${location.origin.replace("http", "ws")}/v1/stream?rate=${rate}&format=float32`;
  // As a subprotocol: a browser sends no header here, and addresses end up in logs.
  const socket = new WebSocket(address, ["sottovoce.v1", `token.${token()}`]);
  socket.binaryType = "arraybuffer";
  return socket;
}
