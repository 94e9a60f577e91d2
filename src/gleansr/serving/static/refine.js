// From an edit to the refined image: what is sent to the server, and that only the newest answer counts.
import { randomName } from "./api.js";
import { decode } from "./files.js";
import { clip, shrink, whole, words } from "./pixels.js";
import { holds } from "./region.js";

const REMEMBERED = 6;
const SEARCHED = 640;  // longer side in pixels of the image in which heads are sought
const MASK_COLOUR = [255, 64, 129];

/**
 * What the model made of an area of the image.
 * @typedef {object} Result
 * @property {import("./pixels.js").Rect} area
 * @property {number} by how many times it is shrunk, since more pixels than the model makes only cost time while one edits
 * @property {ImageData} pixels of the area
 * @property {OffscreenCanvas} canvas the pixels that differ from the base, and nothing elsewhere
 * @property {Blob|null} blob the server's file
 * @property {string} model
 * @property {string} note
 * @property {number} seconds of the forward pass
 */

/**
 * @typedef {{model: object, strength: number, factor: number|null, feather: number|null}} Settings
 *   model: its entry in the list of models; feather in pixels of the image; null: the server's choice
 */

/** Sends edits of a document to the server. */
export class Refiner {
  /** @param {import("./api.js").Service|import("./engine/browser.js").Browser} service */
  constructor(service) {
    this.service = service;
    this.editor = randomName();
    this.current = null;
    this.results = new Map();
    this.bases = new WeakMap();
  }

  /**
   * What the image shows where it was edited: the square of a head, if one is there, and the model for it.
   * @param {import("./document.js").Document} document
   * @param {import("./pixels.js").Rect} changed
   * @param {(why: string) => void} waits
   * @param {import("./pixels.js").Rect|null} chosen where to look; null: everywhere
   * @returns {Promise<{area: import("./pixels.js").Rect|null, model: string, summary: string}|null>} area: null if the whole image is meant
   */
  recognise(document, changed, waits, chosen = null) {
    const by = Math.ceil(Math.max(document.width, document.height) / SEARCHED), small = shrink(document.base, whole(document), by);
    const mask = new ImageData(small.width, small.height), { left, top, right, bottom } = changed;
    mask.data.fill(255);
    for (let y = 0, i = 0; y < small.height; y++) {
      for (let x = 0; x < small.width; x++, i++) {
        const touched = x >= Math.floor(left / by) && y >= Math.floor(top / by) && x < Math.ceil(right / by) && y < Math.ceil(bottom / by);
        if (!touched) mask.data.fill(0, 4 * i, 4 * i + 3);
      }
    }
    const box = chosen && [chosen.left, chosen.top, chosen.right - chosen.left].map((at) => Math.floor(at / by)).join();
    return this.alone(async (signal) => {
      const fields = { edited: await this.service.encode(small), mask: await this.service.encode(mask), model: "auto", output: "mask", box };
      const { box: [x, y, side], model, summary } = await this.service.process("retouch", fields, { editor: this.editor, signal, waits });
      const found = clip({ left: x * by, top: y * by, right: (x + side) * by, bottom: (y + side) * by }, whole(document));
      const all = side >= Math.min(small.width, small.height);
      return { area: all ? null : found, model, summary };
    });
  }

  /** Drops what is under way, and returns whether there was anything. */
  cancel() {
    const busy = Boolean(this.current);
    this.current?.abort();
    this.current = null;
    return busy;
  }

  /** Forgets the results of another image. */
  forget() {
    this.cancel();
    this.results.clear();
  }

  /**
   * Refines what was edited in the part of the image that the model sees. A newer call makes an older one return null, whatever its answer.
   * @param {import("./document.js").Document} document
   * @param {import("./pixels.js").Rect} region
   * @param {Settings} settings
   * @param {(why: string) => void} waits is told why nothing happens yet
   * @returns {Promise<Result|null>}
   * @throws {import("./api.js").Problem}
   */
  async refine(document, region, settings, waits) {
    this.cancel();
    const key = JSON.stringify([document.history.state, region, settings]), known = this.results.get(key);
    if (known) return known;
    const result = await this.alone((signal) => this.ask(document, region, coarseness(region, settings), settings, { signal, waits }));
    if (result) this.results.set(key, result);
    if (this.results.size > REMEMBERED) this.results.delete(this.results.keys().next().value);
    return result;
  }

  /** The result at the image's full size, for which the server is asked again if the one that is shown is smaller. */
  async full(document, region, settings, result, waits) {
    if (result.by === 1) return result;
    this.cancel();
    return this.alone((signal) => this.ask(document, region, 1, settings, { signal, waits }));
  }

  /** How much of the refined image shows, as an area and a canvas with the colour of masks; null if a newer request has come. */
  async mask(document, region, settings) {
    this.masking?.abort();
    const { signal } = this.masking = new AbortController(), by = coarseness(region, settings);
    try {
      const fields = await this.fields(document, region, by, settings);
      const { blob, pixels } = await this.service.process("retouch", { ...fields, output: "mask" }, { signal, editor: `${this.editor}-mask` });
      const image = pixels ?? await decode(blob);
      for (let i = 0; i < image.data.length; i += 4) image.data.set([...MASK_COLOUR, image.data[i] * 0.6], i);
      return signal.aborted ? null : { area: sent(document, region, by).area, canvas: canvasOf(image) };
    } catch (error) {
      if (signal.aborted || error.status === 409) return null;
      throw error;
    }
  }

  async alone(work) {
    const controller = this.current = new AbortController();
    try {
      const result = await work(controller.signal);
      return controller.signal.aborted ? null : result;
    } catch (error) {
      if (controller.signal.aborted || error.status === 409) return null;  // 409: the server has a newer one
      throw error;
    } finally {
      if (this.current === controller) this.current = null;
    }
  }

  async ask(document, region, by, settings, options) {
    const begun = performance.now();
    const fields = await this.fields(document, region, by, settings);
    const asked = performance.now();
    const answer = await this.service.process("retouch", fields, { ...options, editor: this.editor });
    const answered = performance.now();
    const { image, area } = await this.base(document, region, by), pixels = answer.pixels ?? await decode(answer.blob);
    const canvas = canvasOf(where(pixels, image));
    const detail = { forward: answer.seconds, width: pixels.width, height: pixels.height };
    performance.measure("refine:prepare", { start: begun, end: asked, detail });
    performance.measure("refine:request", { start: asked, end: answered, detail });
    performance.measure("refine:decode", { start: answered, end: performance.now(), detail });
    return { ...answer, area, by, pixels, canvas };
  }

  async fields(document, region, by, { model, strength, factor, feather }) {
    const { area, box, blob } = await this.base(document, region, by);
    return {
      edited: await this.service.encode(shrink(document.edited, area, by)), original: blob, model: model.name, strength, factor,
      feather: feather === null ? null : Math.round(feather / by), box,
    };
  }

  /** What is sent of the base; it is the same from stroke to stroke. */
  async base(document, region, by) {
    const { area, box } = sent(document, region, by), key = JSON.stringify([document.version, area, by]);
    let base = this.bases.get(document);
    if (base?.key !== key) {
      const image = shrink(document.base, area, by);
      this.bases.set(document, base = { key, image, blob: await this.service.encode(image) });
    }
    return { ...base, area, box };
  }
}

/** How many times a region can be shrunk and still have more pixels than the model makes. */
function coarseness({ left, right }, { model }) {
  return Math.max(1, Math.floor((right - left) / Math.max(512, model.output_size)));
}

/**
 * What is sent: the region, in whole blocks of by x by pixels, and around it a block of what the image goes on with, by which the server knows
 * that the result has to fade there; and where in this area the region lies.
 */
function sent(document, region, by) {
  const all = whole(document);
  if (holds(region, all)) return { area: all, box: null };
  const width = Math.floor((region.right - region.left) / by), height = Math.floor((region.bottom - region.top) / by);
  const [left, top] = [region.left < by ? 0 : 1, region.top < by ? 0 : 1];
  const area = clip({
    left: region.left - left * by, top: region.top - top * by, right: region.left + (width + 1) * by, bottom: region.top + (height + 1) * by,
  }, all);
  return { area, box: `${left},${top},${width}` };
}

/** An image's pixels where it differs from another one, transparent elsewhere. */
function where(image, other) {
  const shown = new ImageData(image.data.slice(), image.width), pixels = words(shown), others = words(other);
  for (let i = 0; i < pixels.length; i++) if (pixels[i] === others[i]) pixels[i] = 0;
  return shown;
}

function canvasOf(image) {
  const canvas = new OffscreenCanvas(image.width, image.height);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}
