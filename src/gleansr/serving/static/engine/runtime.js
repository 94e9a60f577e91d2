// Runs networks by ONNX Runtime's WebAssembly: fetches each file when it is first needed, checks it, and keeps it for use without a network.
import * as ort from "../../runtime/ort.js";
import { map, mirrored, planes } from "./planes.js";

const CACHE = "gleansr-models";
const LOADED = 4;  // networks in memory

/** @typedef {{name: string, file: string, size: number, sha256: string}} Stored  a file of the site */
/** @typedef {(text: string) => void} Report  is told what takes time; "": nothing any more */

/** The networks of a site. */
export class Runtime {
  /**
   * @param {object} list of models.json
   * @param {string} root the site's address
   */
  constructor(list, root) {
    Object.assign(this, { list, root, sessions: new Map(), started: null, report: () => {} });
  }

  /**
   * Runs a network.
   * @param {Stored} network
   * @param {Object<string, import("./planes.js").Planes>} inputs by name
   * @returns {Promise<Object<string, {data: Float32Array, dims: number[]}>>} outputs by name
   */
  async run(network, inputs) {
    const session = await this.session(network), feeds = {};
    for (const [name, { data, count, height, width }] of Object.entries(inputs)) feeds[name] = new ort.Tensor("float32", data, [1, count, height, width]);
    return session.run(feeds);
  }

  /** Runs a network with one output. */
  async forward(network, name, input) {
    const { data, dims } = Object.values(await this.run(network, { [name]: input }))[0];
    return planes(dims[1], dims[2], dims[3], data);
  }

  /**
   * Enlarges by a model of a category: where its file says so, the mean of the results for the image and for its mirror image.
   * @param {Stored & import("./fit.js").Model} model
   * @param {import("./planes.js").Planes} lr in [-1, 1], of the model's input size
   */
  async enlarge(model, lr) {
    const sr = await this.forward(model, "low", lr);
    if (!model.self_ensemble) return sr;
    const other = mirrored(await this.forward(model, "low", mirrored(lr)));
    return map(sr, (value, i) => (value + other.data[i]) / 2);
  }

  /** Loads the classifier before it is needed. */
  async warm() {
    await this.session(this.list.classifier.features);
    await this.session(this.list.classifier.head);
  }

  async session(network) {
    const loaded = this.sessions.get(network.file);
    if (loaded) {
      this.sessions.delete(network.file);  // and put at the end again: the first is what was not used for longest
      this.sessions.set(network.file, loaded);
      return loaded;
    }
    await (this.started ??= this.start());
    const bytes = await this.fetch(network);
    this.report("Preparing the model…");
    const session = await ort.InferenceSession.create(new Uint8Array(bytes), { executionProviders: ["wasm"], graphOptimizationLevel: "all" });
    this.report("");
    this.sessions.set(network.file, session);
    for (const [file, old] of this.sessions) {
      if (this.sessions.size <= LOADED) break;
      this.sessions.delete(file);
      await old.release();
    }
    return session;
  }

  async start() {
    const { wasm } = ort.env;
    wasm.wasmPaths = { mjs: new URL("runtime/ort-wasm.js", this.root).href };
    // Threads share memory, which browsers allow to isolated pages only.
    wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
    const packed = new Blob([await this.fetch(this.list.runtime)]).stream().pipeThrough(new DecompressionStream("gzip"));
    wasm.wasmBinary = await new Response(packed).arrayBuffer();
  }

  /** A file's bytes, from the browser's storage or the site. */
  async fetch({ name, file, size, sha256 }) {
    const url = new URL(file, this.root).href, cache = await self.caches?.open(CACHE).catch(() => null);
    const stored = await cache?.match(url);
    if (stored) return stored.arrayBuffer();
    const bytes = await this.download(url, name, size);
    if (self.crypto.subtle && hex(await self.crypto.subtle.digest("SHA-256", bytes)) !== sha256) {
      throw new Error(`${name} is not the file that the page was made with. Reload the page.`);
    }
    await cache?.put(url, new Response(bytes, { headers: { "Content-Length": String(bytes.byteLength) } })).catch(() => {});
    return bytes;
  }

  async download(url, name, size) {
    const of = `${(size / 1e6).toFixed(1)} MB`;
    const response = await fetch(url).catch(() => null);
    if (!response?.ok) throw new Error(`${name} (${of}) could not be loaded. Is there a connection?`);
    const bytes = new Uint8Array(size), reader = response.body.getReader();
    let at = 0, told = -1;
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      if (at + part.value.length > size) throw new Error(`${name} is larger than the file that the page was made with. Reload the page.`);
      bytes.set(part.value, at);
      at += part.value.length;
      const percent = Math.floor(10 * at / size) * 10;
      if (percent !== told) this.report(`Loading ${name}, ${told = percent} % of ${of}…`);
    }
    return at === size ? bytes.buffer : bytes.buffer.slice(0, at);
  }
}

/** Removes files of former versions of the site from the browser's storage. */
export async function tidy(list, root) {
  const cache = await self.caches?.open(CACHE).catch(() => null);
  const kept = new Set(files(list).map(({ file }) => new URL(file, root).href));
  for (const request of await cache?.keys() ?? []) if (!kept.has(request.url)) await cache.delete(request);
}

/** All files of a list that are fetched when they are needed. @returns {Stored[]} */
const files = ({ runtime, classifier, general, models, cascades }) => (
  [runtime, classifier?.features, classifier?.head, general, ...models, ...Object.values(cascades ?? {})].filter(Boolean)
);

const hex = (buffer) => [...new Uint8Array(buffer)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
