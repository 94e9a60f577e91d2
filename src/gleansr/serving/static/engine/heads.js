// Finds the heads of a photo: by cascades, each checked by the classifier. Like gleansr.photos.search, but upright heads only.
import { compiled, find } from "./cascade.js";
import { classify, NOUNS } from "./classify.js";
import { clamp, clamped, crop, map, planes, round } from "./planes.js";
import { resize } from "./resize.js";
import { bestModel, LARGEST } from "./router.js";

/** @typedef {import("./planes.js").Planes} Planes */
/** @typedef {{left: number, top: number, width: number}} Square  in whole pixels of the photo; may extend beyond it */
/** @typedef {Square & {category: string, score: number}} Head */

const MAX_PIXELS = 600000;  // of the photo that is searched
const MAX_SCALE = 2;
const MOST = 60;  // heads
const SAME = 0.5;  // two squares show the same head if at least this share of the smaller one lies in the other
const CROP = 32;  // pixels at which a head is recognised

// Where the windows of a cascade lie in the squares that models see: their side as a share of the square's, and how far their middle lies right
// of and below its middle. Faces: medians of 60 heads of 40 to 110 px in 20 portraits, against dlib's landmarks; cats: gleansr.photos.cats.
const KINDS = {
  faces: { side: 0.657, right: 0.003, below: 0.039, least: 20, most: 47, step: 1.1, neighbours: 2, score: 0 },
  cats: { side: 0.648, right: 0, below: 0.072, least: 24, most: 56, step: 1.05, neighbours: 2, score: 1.3 },
};

const cascades = new WeakMap();

/**
 * The heads in an image, the surest first.
 * @param {import("./runtime.js").Runtime} runtime
 * @param {import("./planes.js").ImagePlanes} picture
 * @param {(text: string) => Promise<void>} report what it throws ends the search
 * @param {string[]} sought categories; by default all that have a detector
 * @returns {Promise<Head[]>}
 */
export async function search(runtime, picture, report, sought = detected(runtime.list)) {
  const { colour } = picture, found = [];
  const density = Math.min(MAX_SCALE, Math.sqrt(MAX_PIXELS / (colour.width * colour.height)));
  const grey = greyOf(colour, Math.max(1, round(colour.height * density)), Math.max(1, round(colour.width * density)));
  for (const category of sought) {
    await report(`Looking for ${category}…`);
    const heads = distinct(await windows(runtime, category, grey).then((all) => all.map((one) => squareOf(one, category, density))), colour);
    for (const head of heads.slice(0, MOST)) {
      const { name } = await classify(runtime, { colour: content(colour, head, CROP), alpha: null });
      if (name === category) found.push(head);
    }
  }
  return found;
}

/** Categories that a site has a detector for. */
export const detected = ({ cascades: files }) => Object.keys(files ?? {});

/** The model for a head; null if it has more pixels than the models take. */
export function modelFor(models, { category, width }) {
  const model = bestModel(models, category, width);
  return model && width <= LARGEST * model.input_size ? model : null;
}

/** "2 faces, 1 cat"; what is looked for, if there are none. */
export function summary(heads, sought) {
  const counts = Object.entries(NOUNS).map(([category, noun]) => [heads.filter((head) => head.category === category).length, noun, category]);
  const said = counts.filter(([count]) => count).map(([count, noun, plural]) => `${count} ${count > 1 ? plural : noun}`);
  return said.join(", ") || sought.length && `no ${sought.map((category) => NOUNS[category]).join(" or ")} found` || "";
}

/** The pixels of a square at another size; beyond the border the image is mirrored. */
export function content(from, { left, top, width }, size) {
  const part = crop(from, left, top, width, width, true);
  return width === size ? part : clamped(resize(part, size, size));
}

/** What a cascade finds in an image and in its halves: it shrinks without smoothing, and misses large heads full of false edges. */
async function windows(runtime, category, image) {
  const { least, most, step, neighbours, score } = KINDS[category], cascade = await load(runtime, category), all = [];
  for (let grey = image, by = 1; Math.min(grey.width, grey.height) >= least; grey = half(grey), by *= 2) {
    for (const one of find(cascade, grey, { least, most, step, neighbours })) {
      if (one.score >= score) all.push({ left: one.left * by, top: one.top * by, width: one.width * by, score: one.score });
    }
  }
  return all;
}

async function load(runtime, category) {
  const file = runtime.list.cascades[category];
  if (!cascades.has(file)) cascades.set(file, compiled(JSON.parse(new TextDecoder().decode(await runtime.fetch(file)))));
  return cascades.get(file);
}

function squareOf({ left, top, width, score }, category, density) {
  const { side, right, below } = KINDS[category], exact = width / side / density, across = Math.max(1, round(exact));
  const x = (left + width / 2) / density - right * exact, y = (top + width / 2) / density - below * exact;
  return { category, left: round(x - across / 2), top: round(y - across / 2), width: across, score };
}

/** The surest of those that show the same head, with their middle in the image. */
function distinct(heads, { width, height }) {
  const kept = [], span = (a, b, lengthA, lengthB) => Math.max(0, Math.min(a + lengthA, b + lengthB) - Math.max(a, b));
  const shared = (a, b) => span(a.left, b.left, a.width, b.width) * span(a.top, b.top, a.width, b.width) / Math.min(a.width, b.width) ** 2;
  for (const head of heads.sort((a, b) => b.score - a.score)) {
    const x = head.left + head.width / 2, y = head.top + head.width / 2;
    if (x >= 0 && x < width && y >= 0 && y < height && kept.every((other) => shared(head, other) < SAME)) kept.push(head);
  }
  return kept;
}

/** The brightness of an image in bytes, at another size. @returns {import("./cascade.js").Grey} */
function greyOf({ data, width, height }, rows, columns) {
  const size = width * height, bright = planes(1, height, width);
  for (let i = 0; i < size; i++) bright.data[i] = 0.299 * data[i] + 0.587 * data[size + i] + 0.114 * data[2 * size + i];
  const bytes = Uint8Array.from(map(resize(bright, rows, columns), (value) => Math.floor(255 * clamp(value, 0, 1) + 0.5)).data);
  return { data: bytes, width: columns, height: rows };
}

/** Half as large, each pixel the mean of four. */
function half({ data, width, height }) {
  const columns = width >> 1, rows = height >> 1, out = new Uint8Array(columns * rows);
  for (let y = 0, to = 0; y < rows; y++) {
    for (let x = 0, at = 2 * y * width; x < columns; x++, at += 2, to++) out[to] = (data[at] + data[at + 1] + data[at + width] + data[at + width + 1] + 2) >> 2;
  }
  return { data: out, width: columns, height: rows };
}
