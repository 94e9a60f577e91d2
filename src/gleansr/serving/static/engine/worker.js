// The browser's engine, in a worker so that the page stays alive: takes requests one after the other.
import { retouch } from "./retouch.js";
import { Runtime, tidy } from "./runtime.js";
import { upscale } from "./upscale.js";

const WORK = { upscale, retouch };
const cancelled = new Set();
let runtime = null;
let last = Promise.resolve();

const turn = () => new Promise((resolve) => setTimeout(resolve));  // lets messages come

self.onmessage = ({ data: { id, list, root, warm, cancel, what, fields } }) => {
  if (list) {
    runtime = new Runtime(list, root);
    tidy(list, root);
  } else if (warm) last = last.then(() => runtime.warm()).catch(() => {});
  else if (cancel) cancelled.add(cancel);
  else last = last.then(() => answer(id, what, fields));
};

async function answer(id, what, fields) {
  let stage = "";
  const report = async (text) => {
    stage = text;
    self.postMessage({ id, text });
    await turn();
    if (cancelled.has(id)) throw new DOMException("cancelled", "AbortError");
  };
  try {
    runtime.report = (text) => self.postMessage({ id, text: text || stage });
    await report("");
    self.postMessage({ id, result: await WORK[what](runtime, fields, report) });
  } catch (error) {
    self.postMessage({ id, error: { message: memory(error) ?? error.message ?? String(error), type: error.type ?? "" } });
  } finally {
    cancelled.delete(id);
  }
}

/** What to do if the memory did not suffice; null for other errors. */
function memory(error) {
  const short = error instanceof RangeError || /out of memory|bad_alloc|allocation failed/i.test(error.message ?? error);
  return short ? "The memory of this browser did not suffice. Close other pages, choose a lower scale, or use gleansr on this machine." : null;
}
