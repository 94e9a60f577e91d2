// Keeps the page for use without a network: the service worker of the static site. Models and ONNX Runtime are kept by engine/runtime.js.
// `gleansr page` writes VERSION, FILES and POLICY above.
const CACHE = `gleansr-page-${VERSION}`;

self.addEventListener("install", (event) => event.waitUntil(fill()));
self.addEventListener("activate", (event) => event.waitUntil(takeOver()));
self.addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method === "GET" && new URL(request.url).origin === location.origin) event.respondWith(answer(request));
});

async function fill() {
  const cache = await caches.open(CACHE);
  await cache.addAll(FILES.map((file) => new Request(file, { cache: "reload" })));
  await self.skipWaiting();
}

async function takeOver() {
  for (const name of await caches.keys()) if (name.startsWith("gleansr-page-") && name !== CACHE) await caches.delete(name);
  await self.clients.claim();
}

async function answer(request) {
  const cache = await caches.open(CACHE), stored = await cache.match(request.mode === "navigate" ? "./" : request, { ignoreSearch: true });
  if (!stored) return fetch(request);
  // The page has the policy in its head. Workers obey their own answer's, which a file server does not send.
  const headers = new Headers(stored.headers);
  headers.set("Content-Security-Policy", POLICY);
  return new Response(stored.body, { status: stored.status, statusText: stored.statusText, headers });
}
