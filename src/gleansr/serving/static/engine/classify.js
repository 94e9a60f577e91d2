// What an image shows: gleansr.inference.categories, with the same classifier.
import { asPlanes } from "./fit.js";
import { clamp, crop, map, mirrored, planes, round, signed } from "./planes.js";
import { resize } from "./resize.js";

/** @typedef {import("./planes.js").Planes} Planes */

const NAMES = ["faces", "cats", "cars", "bedrooms", "towers", "other"];
const GRID = 3;
const SMALL = 32;  // images are reduced to about this side
const ENLARGED = 128;  // side of what the network sees
const GUESSED = 0.25;
const MAX_ASPECT = 2;
const PREREDUCED = 256;  // larger images are averaged to at least this side first

/** One object of each category. */
export const NOUNS = { faces: "face", cats: "cat", cars: "car", bedrooms: "bedroom", towers: "tower" };

/** @typedef {{name: string, confidence: number, guess?: string}} Category  name: one of five, or "other"; guess: what that may be */

/**
 * The category of an image; "other" if none is probable enough.
 * @param {import("./runtime.js").Runtime} runtime
 * @param {import("./planes.js").ImagePlanes} picture
 * @returns {Promise<Category>}
 */
export async function classify(runtime, picture) {
  const all = await probabilities(runtime, picture), best = mostProbable(all, NAMES.slice(0, -1)), { threshold } = runtime.list.classifier;
  if (best.confidence >= threshold && best.confidence > all.other) return best;
  return { name: "other", confidence: all.other, guess: best.confidence >= GUESSED ? best.name : "" };
}

/** A confidence as text, such as "98%". Never "100%", since no classifier is certain. */
export function percent(confidence) {
  return confidence >= 0.995 ? ">99%" : `${Math.round(100 * confidence)}%`;
}

/** The most probable of some categories. */
export function mostProbable(all, names) {
  const name = names.reduce((best, one) => all[one] > all[best] ? one : best);
  return { name, confidence: all[name] };
}

/**
 * Of each category: the mean of the probabilities of the image and of its mirror image.
 * @returns {Promise<Object<string, number>>} by category
 */
export async function probabilities(runtime, picture) {
  const small = reduced(picture), one = await ofView(runtime, small), other = await ofView(runtime, mirrored(small));
  return Object.fromEntries(NAMES.map((name) => [name, (one[name] + other[name]) / 2]));
}

async function ofView(runtime, small) {
  const { features, head } = runtime.list.classifier, layers = await runtime.run(features, { image: resize(small, ENLARGED, ENLARGED) });
  const cells = ["block5", "block11", "block16"].map((name) => grid(asPlanes(layers[name])));
  const { logits } = await runtime.run(head, { cells: joined(cells) });
  const powers = [...logits.data].map((value) => Math.exp(value - Math.max(...logits.data))), sum = powers.reduce((a, b) => a + b);
  return Object.fromEntries(NAMES.map((name, i) => [name, powers[i] / sum]));
}

/** The image in [-1, 1], on white, reduced to an area of at most 32x32; the middle of an image longer than 2:1. */
function reduced({ colour, alpha }) {
  const middle = (side, other) => {
    const kept = Math.min(side, Math.max(1, round(other * MAX_ASPECT)));
    return [Math.floor((side - kept) / 2), kept];
  };
  const [top, height] = middle(colour.height, colour.width), [left, width] = middle(colour.width, colour.height);
  const cut = (from) => crop(from, left, top, width, height), opacity = alpha && cut(alpha), size = width * height;
  const part = cut(colour), pixels = opacity ? map(part, (value, i) => value + 1 - opacity.data[i % size]) : part;
  const all = signed(averaged(pixels, Math.floor(Math.min(height, width) / PREREDUCED)));
  return all.height * all.width <= SMALL ** 2 ? all : map(resize(all, ...sides(all)), (value) => clamp(value, -1, 1));
}

/** Each pixel the mean of by x by pixels, or of as many as are left at the right and bottom. */
function averaged(from, by) {
  if (by <= 1) return from;
  const { count, height, width, data } = from, small = planes(count, Math.ceil(height / by), Math.ceil(width / by));
  for (let c = 0, to = 0; c < count; c++) {
    for (let y = 0; y < height; y += by) {
      for (let x = 0; x < width; x += by, to++) small.data[to] = mean(data, c * height, width, y, Math.min(y + by, height), x, Math.min(x + by, width));
    }
  }
  return small;
}

/** The means of planes in 3x3 cells. */
function grid({ count, height, width, data }) {
  const cells = planes(count, GRID, GRID), start = (i, length) => Math.floor(i * length / GRID), end = (i, length) => Math.ceil((i + 1) * length / GRID);
  for (let c = 0, to = 0; c < count; c++) {
    for (let i = 0; i < GRID; i++) {
      for (let j = 0; j < GRID; j++, to++) {
        cells.data[to] = mean(data, c * height, width, start(i, height), end(i, height), start(j, width), end(j, width));
      }
    }
  }
  return cells;
}

function mean(data, row, width, top, bottom, left, right) {
  let sum = 0;
  for (let y = top; y < bottom; y++) for (let x = left; x < right; x++) sum += data[(row + y) * width + x];
  return sum / ((bottom - top) * (right - left));
}

function joined(parts) {
  const out = planes(parts.reduce((sum, { count }) => sum + count, 0), GRID, GRID);
  let at = 0;
  for (const { data } of parts) {
    out.data.set(data, at);
    at += data.length;
  }
  return out;
}

/** Height and width of about 32x32 pixels with an image's aspect ratio. */
function sides({ height, width }) {
  const stretch = Math.sqrt(height / width);
  return [Math.max(1, round(SMALL * stretch)), Math.max(1, round(SMALL / stretch))];
}
