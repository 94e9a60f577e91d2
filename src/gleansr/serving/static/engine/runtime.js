// Runs networks by ONNX Runtime, on the processor or by WebGPU: fetches each file when it is first needed, checks it, and keeps it for use
// without a network.
import { map, mirrored, planes } from "./planes.js";

const CACHE = "gleansr-models";
const LOADED = 4;  // networks in memory
const LEAST_PSNR = 45;  // dB of a GPU's result, for a network to run there

/** @typedef {{name: string, file: string, size: number, sha256: string, probe?: Probe}} Stored  a file; probe: of a network that a GPU may run */
/** @typedef {{side: number, values: number[]}} Probe  values of the output, evenly spaced, for `noise` of that side */
/** @typedef {(text: string) => void} Report  is told what takes time; "": nothing any more */

/** The networks of a site. */
export class Runtime {
  /**
   * @param {object} list of models.json
   * @param {string} root the site's address
   */
  constructor(list, root) {
    Object.assign(this, { list, root, sessions: new Map(), started: null, ort: null, gpu: false, report: () => {} });
  }

  /**
   * Runs a network.
   * @param {Stored} network
   * @param {Object<string, import("./planes.js").Planes>} inputs by name
   * @returns {Promise<Object<string, {data: Float32Array, dims: number[]}>>} outputs by name
   */
  async run(network, inputs) {
    const session = await this.session(network);
    try {
      return await this.pass(session, inputs);
    } catch (error) {
      if (!this.gpu) throw error;
      await this.leaveGpu();  // it was lost, or has too little memory
      return this.pass(await this.session(network), inputs);
    }
  }

  pass(session, inputs) {
    const feeds = {};
    for (const [name, { data, count, height, width }] of Object.entries(inputs)) feeds[name] = new this.ort.Tensor("float32", data, [1, count, height, width]);
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
    const session = this.gpu && network.probe ? await this.onGpu(bytes, network.probe) : await this.onProcessor(bytes);
    this.report("");
    this.sessions.set(network.file, session);
    for (const [file, old] of this.sessions) {
      if (this.sessions.size <= LOADED) break;
      this.sessions.delete(file);
      await old.release();
    }
    return session;
  }

  onProcessor(bytes) {
    return this.ort.InferenceSession.create(new Uint8Array(bytes), { executionProviders: ["wasm"], graphOptimizationLevel: "all" });
  }

  /** A session on the GPU if its result of the probe is the expected one: drivers have faults. Else one on the processor. */
  async onGpu(bytes, { side, values }) {
    let session = null;
    try {
      session = await this.ort.InferenceSession.create(new Uint8Array(bytes), { executionProviders: ["webgpu"], graphOptimizationLevel: "all" });
      const { data } = Object.values(await this.pass(session, { low: noise(side) }))[0];
      const squares = values.reduce((sum, value, i) => sum + (data[Math.floor(i * data.length / values.length)] - value) ** 2, 0);
      if (10 * Math.log10(4 * values.length / squares) >= LEAST_PSNR) return session;  // false for NaN
    } catch (error) {
      console.warn("The GPU cannot run this network; the processor does:", error);
    }
    await session?.release();
    await this.leaveGpu();
    return this.onProcessor(bytes);
  }

  /** All networks are loaded anew when they are needed, onto the processor. */
  async leaveGpu() {
    this.gpu = false;
    for (const session of this.sessions.values()) await session.release().catch(() => {});
    this.sessions.clear();
  }

  async start() {
    this.gpu = Boolean(this.list.gpu_runtime) && await usableGpu();
    const [script, glue] = this.gpu ? ["ort-gpu.js", "ort-gpu-wasm.js"] : ["ort.js", "ort-wasm.js"];
    this.ort = await import(new URL(`runtime/${script}`, this.root).href);
    const { wasm } = this.ort.env;
    wasm.wasmPaths = { mjs: new URL(`runtime/${glue}`, this.root).href };
    // Threads share memory, which browsers allow to isolated pages only.
    wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
    const packed = new Blob([await this.fetch(this.gpu ? this.list.gpu_runtime : this.list.runtime)]).stream().pipeThrough(new DecompressionStream("gzip"));
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
const files = ({ runtime, gpu_runtime: gpu, classifier, general, models, cascades }) => (
  [runtime, gpu, classifier?.features, classifier?.head, general, ...models, ...Object.values(cascades ?? {})].filter(Boolean)
);

/** Whether there is a GPU, no program that acts as one, and WebAssembly can wait for it. */
async function usableGpu() {
  if (!("Suspending" in WebAssembly)) return false;
  const adapter = await navigator.gpu?.requestAdapter({ powerPreference: "high-performance" }).catch(() => null);
  return Boolean(adapter) && !adapter.info.isFallbackAdapter;
}

/** Noise in [-1, 1], the same as `gleansr.serving.site.noise`. @returns {import("./planes.js").Planes} */
function noise(side) {
  const image = planes(3, side, side);
  for (let i = 0, state = 1; i < image.data.length; i++) {
    state = state * 16807 % 2147483647;
    image.data[i] = 2 * state / 2147483647 - 1;
  }
  return image;
}

const hex = (buffer) => [...new Uint8Array(buffer)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
