// The shell alone: what the device says is never kept outside of it.
const SHELL = "sottovoce-shell-1";
const FILES = [
  "/", "/api.js", "/app.css", "/app.js", "/charts.js", "/data.js", "/dom.js", "/icon.svg", "/index.html", "/listen.js",
  "/manifest.webmanifest", "/microphone.js", "/privacy.js", "/settings.js", "/sound.js", "/voice.js", "/welcome.js",
  "/words.js", "/words/de.js", "/words/en.js",
];

self.addEventListener("install", (event) => {
  // All at once: a page whose parts are of two releases would be none.
  event.waitUntil(caches.open(SHELL).then((cache) => cache.addAll(FILES)));
  self.skipWaiting();
});

self.addEventListener("activate", (event) => {
  event.waitUntil(
    caches.keys().then((names) =>
      Promise.all(names.filter((name) => name !== SHELL).map((name) => caches.delete(name)))),
  );
  self.clients.claim();
});

self.addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  const isShell = url.origin === self.location.origin && !url.pathname.startsWith("/v1/");
  if (event.request.method === "GET" && isShell) event.respondWith(fresh(event.request));
});

// The service first, so that page and service are of one release; the copy where it is stopped.
async function fresh(request) {
  const cache = await caches.open(SHELL);
  try {
    const answer = await fetch(request);
    if (answer.ok) await cache.put(request, answer.clone());
    return answer;
  } catch {
    return (await cache.match(request)) ?? (await cache.match("/")) ?? Response.error();
  }
}
