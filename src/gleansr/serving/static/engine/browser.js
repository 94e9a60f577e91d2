// The page's engine without a server: a worker of this browser does what the service does. See `Service` in ../api.js.
import { Problem } from "../api.js";

/** Runs the models of a site in the browser. */
export class Browser {
  /** @param {string} list the address of models.json */
  constructor(list) {
    this.address = new URL(list, document.baseURI);
    this.local = true;
    this.pending = new Map();
    this.worker = null;
    this.count = 0;
  }

  /** The models of the site, as the service lists them. */
  async models({ signal } = {}) {
    return (this.list ??= await this.read(signal));
  }

  async read(signal) {
    const response = await fetch(this.address, { signal }).catch(() => null);
    if (!response?.ok) throw new Problem({ detail: "The list of models could not be loaded. Is there a connection?" });
    return response.json();
  }

  /**
   * As `Service.process`. The result of a retouch has `pixels` instead of a file.
   * @param {"upscale"|"retouch"} what
   * @param {Object<string, Blob|ImageData|string|number|null>} fields
   * @param {{signal?: AbortSignal, waits?: (why: string) => void, progress?: (stage: string) => void}} options
   */
  async process(what, fields, { signal, waits = () => {}, progress = waits } = {}) {
    signal?.throwIfAborted();
    const worker = await this.start(), id = ++this.count;
    return new Promise((resolve, reject) => {
      this.pending.set(id, { resolve, reject, progress });
      signal?.addEventListener("abort", () => {
        worker.postMessage({ cancel: id });
        this.pending.delete(id);
        reject(signal.reason);
      }, { once: true });
      worker.postMessage({ id, what, fields });
    });
  }

  /** An image will be retouched: loads what recognises it, which takes seconds, before the first stroke ends. */
  warm() {
    this.start().then((worker) => worker.postMessage({ warm: true }), () => {});  // what is wrong is said when it is needed
  }

  /** What `process` takes for an image. */
  encode(image) {
    return image;
  }

  async start() {
    const list = await this.models();
    if (this.worker) return this.worker;
    const worker = this.worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    worker.onmessage = ({ data }) => this.receive(data);
    worker.onerror = (event) => this.fail(event.message);
    worker.postMessage({ list, root: new URL(".", this.address).href });
    return worker;
  }

  receive({ id, text, result, error }) {
    const request = this.pending.get(id);
    if (!request) return;
    if (text !== undefined) return request.progress(text);
    this.pending.delete(id);
    if (error) request.reject(new Problem({ detail: error.message, type: error.type }));
    else request.resolve(result);
  }

  /** The worker has ended: all requests fail, and the next one starts another. */
  fail(message) {
    const detail = `The models cannot run in this browser (${message || "its worker did not start"}). Reload the page, or use another browser.`;
    for (const { reject } of this.pending.values()) reject(new Problem({ detail }));
    this.pending.clear();
    this.worker?.terminate();
    this.worker = null;
  }
}
