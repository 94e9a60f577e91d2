// Lets the page work without a network, where the browser can: see sw.js.

/** Keeps the site's pages and programs in the browser; models are kept when they are first used. */
export function keep() {
  navigator.serviceWorker?.register(new URL("sw.js", document.baseURI)).catch(() => {});  // refused in private windows
}
