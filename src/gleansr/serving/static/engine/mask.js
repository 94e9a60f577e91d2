// Where an image was edited, and how the refined image fades in there: gleansr.retouching.mask.
import { clamp, planes, round } from "./planes.js";

/** @typedef {import("./planes.js").Planes} Planes */
/** @typedef {{data: Uint8Array, height: number, width: number}} Mask  1 where true */

const GRID = 512;  // most cells along the longer side
const BLUR = 2;  // pixels to each side over which differences are averaged
const SAMPLE = 2 ** 20;

/** @returns {Mask} */
export const mask = (height, width, data = new Uint8Array(height * width)) => ({ data, height, width });

const where = (like, test) => mask(like.height, like.width, Uint8Array.from({ length: like.height * like.width }, (_, i) => Number(test(i))));

/**
 * Where two images differ, beyond the tolerance and the noise of a recompressed JPEG. Holes are filled.
 * @param {Planes} edited
 * @param {Planes} original
 * @param {number} tolerance in [0, 1]
 * @returns {Mask}
 */
export function findEdits(edited, original, tolerance = 0.01) {
  const { count, height, width } = edited, size = height * width, all = mask(height, width);
  const differs = where(all, (i) => {
    for (let c = 0; c < count; c++) if (edited.data[c * size + i] !== original.data[c * size + i]) return true;
    return false;
  });
  const box = bounds(differs);
  if (!box) return all;
  const exact = differs.data.reduce((sum, one) => sum + one, 0) < 0.5 * size;
  const left = Math.max(0, box.left - BLUR), top = Math.max(0, box.top - BLUR);
  const right = Math.min(width, box.right + BLUR), bottom = Math.min(height, box.bottom + BLUR), part = planes(count, bottom - top, right - left);
  for (let c = 0, to = 0; c < count; c++) {
    for (let y = top; y < bottom; y++) {
      for (let x = left, at = (c * height + y) * width + left; x < right; x++, at++, to++) part.data[to] = edited.data[at] - original.data[at];
    }
  }
  const found = editsIn(part, tolerance, exact);
  for (let y = top; y < bottom; y++) all.data.set(found.data.subarray((y - top) * part.width, (y - top + 1) * part.width), y * width + left);
  return all;
}

function editsIn(difference, tolerance, exact) {
  const { height, width } = difference, size = height * width, signal = new Float32Array(size), noise = exact ? null : new Float32Array(size);
  for (let c = 0; c < difference.count; c++) {
    const plane = difference.data.subarray(c * size, (c + 1) * size);
    averaged(plane, height, width).forEach((value, i) => { signal[i] = Math.max(signal[i], Math.abs(value)); });
    if (!exact) averaged(plane.map(Math.abs), height, width).forEach((value, i) => { noise[i] = Math.max(noise[i], value); });
  }
  const least = tolerance + (exact ? 0 : 4 * quantile(noise.map((value, i) => value - signal[i]), 0.9));
  const shape = mask(height, width), strong = where(shape, (i) => signal[i] > least), weak = where(shape, (i) => signal[i] > 0.6 * least);
  const cell = cellSize(weak), region = connected(toCells(strong, cell), toCells(weak, cell));
  const rest = where(region, (i) => !region.data[i]), outside = connected(border(region), rest);
  const holes = toPixels(where(region, (i) => rest.data[i] && !outside.data[i]), cell, weak), fine = toPixels(region, cell, weak);
  return where(weak, (i) => fine.data[i] && weak.data[i] || holes.data[i]);
}

/** The means of 5x5 pixels, or of as many as there are. */
function averaged(plane, height, width) {
  const rows = new Float64Array(plane.length), out = new Float32Array(plane.length);
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      const first = Math.max(0, x - BLUR), last = Math.min(width - 1, x + BLUR);
      for (let at = first; at <= last; at++) rows[i] += plane[y * width + at] / (last - first + 1);
    }
  }
  for (let y = 0, i = 0; y < height; y++) {
    const first = Math.max(0, y - BLUR), last = Math.min(height - 1, y + BLUR);
    for (let x = 0; x < width; x++, i++) {
      let sum = 0;
      for (let at = first; at <= last; at++) sum += rows[at * width + x];
      out[i] = sum / (last - first + 1);
    }
  }
  return out;
}

/** A mask that reaches `radius` pixels farther, rounded up to whole cells in large images. */
export function dilate(from, radius) {
  const cell = cellSize(from);
  return toPixels(spread(toCells(from, cell), Math.ceil(radius / cell)), cell, from);
}

/**
 * Weights that rise from 0 to 1 inside a mask, within about `width` pixels of its border; they do not fade at the border of the image.
 * @param {Mask} from
 * @returns {Float32Array}
 */
export function feathered(from, width) {
  if (width < 2 || from.data.every(Boolean)) return Float32Array.from(from.data);
  const cell = cellSize(from), radius = Math.max(1, round(width / 2 / cell)), half = radius >> 1;
  const outside = spread(toCells(where(from, (i) => !from.data[i]), cell), radius);
  const padded = { height: outside.height + 2 * radius, width: outside.width + 2 * radius, data: null };
  padded.data = Float64Array.from({ length: padded.height * padded.width }, (_, i) => {
    const y = clamp(Math.floor(i / padded.width) - radius, 0, outside.height - 1), x = clamp(i % padded.width - radius, 0, outside.width - 1);
    return 1 - outside.data[y * outside.width + x];
  });
  // Two box filters make a tent, without visible corners. Their sums are whole numbers, so that 0 and 1 are exact.
  const inner = boxSums(boxSums(padded, radius - half), half), total = (2 * (radius - half) + 1) ** 2 * (2 * half + 1) ** 2;
  const at = (y, x) => inner.data[clamp(y, 0, inner.height - 1) * inner.width + clamp(x, 0, inner.width - 1)] / total;
  return Float32Array.from(from.data, (inside, i) => {
    if (!inside) return 0;
    const y = Math.floor(i / from.width), x = i % from.width;
    return cell === 1 ? at(y, x) : between(at, Math.max(0, (y + 0.5) / cell - 0.5), Math.max(0, (x + 0.5) / cell - 0.5));
  });
}

function between(at, y, x) {
  const top = Math.floor(y), left = Math.floor(x), down = y - top, across = x - left;
  return (at(top, left) * (1 - across) + at(top, left + 1) * across) * (1 - down) + (at(top + 1, left) * (1 - across) + at(top + 1, left + 1) * across) * down;
}

/** The sums of squares of 2 * reach + 1, of those that lie inside. */
function boxSums({ data, height, width }, reach) {
  if (!reach) return { data, height, width };
  const side = 2 * reach + 1, rows = new Float64Array(height * (width - side + 1)), across = width - side + 1, down = height - side + 1;
  for (let y = 0; y < height; y++) {
    for (let x = 0, sum = 0; x < width; x++) {
      sum += data[y * width + x] - (x >= side ? data[y * width + x - side] : 0);
      if (x >= side - 1) rows[y * across + x - side + 1] = sum;
    }
  }
  const out = new Float64Array(down * across);
  for (let x = 0; x < across; x++) {
    for (let y = 0, sum = 0; y < height; y++) {
      sum += rows[y * across + x] - (y >= side ? rows[(y - side) * across + x] : 0);
      if (y >= side - 1) out[(y - side + 1) * across + x] = sum;
    }
  }
  return { data: out, height: down, width: across };
}

/** The rectangle around all that is true, or null. @returns {import("../pixels.js").Rect|null} */
export function bounds({ data, height, width }) {
  let left = width, right = 0, top = height, bottom = 0;
  for (let y = 0; y < height; y++) {
    const row = data.subarray(y * width, (y + 1) * width), first = row.indexOf(1);
    if (first < 0) continue;
    left = Math.min(left, first);
    right = Math.max(right, row.lastIndexOf(1) + 1);
    top = Math.min(top, y);
    bottom = y + 1;
  }
  return bottom ? { left, top, right, bottom } : null;
}

const cellSize = ({ height, width }) => Math.ceil(Math.max(height, width) / GRID);

/** Whether any pixel of a cell is true. */
function toCells(from, cell) {
  if (cell === 1) return from;
  const cells = mask(Math.ceil(from.height / cell), Math.ceil(from.width / cell));
  for (let i = 0; i < from.data.length; i++) {
    if (from.data[i]) cells.data[Math.floor(Math.floor(i / from.width) / cell) * cells.width + Math.floor(i % from.width / cell)] = 1;
  }
  return cells;
}

function toPixels(cells, cell, { height, width }) {
  if (cell === 1) return cells;
  return where(mask(height, width), (i) => cells.data[Math.floor(Math.floor(i / width) / cell) * cells.width + Math.floor(i % width / cell)]);
}

/** True where anything within a square of 2 * radius + 1 is. */
function spread(from, radius) {
  const { height, width } = from, rows = mask(height, width), out = mask(height, width);
  for (let y = 0; y < height; y++) line(from.data, rows.data, y * width, 1, width, radius);
  for (let x = 0; x < width; x++) line(rows.data, out.data, x, width, height, radius);
  return out;
}

function line(from, to, start, step, length, radius) {
  let next = -Infinity;  // the last true one so far
  for (let i = 0, ahead = 0; i < length; i++) {
    for (; ahead < Math.min(length, i + radius + 1); ahead++) if (from[start + ahead * step]) next = ahead;
    if (next >= i - radius) to[start + i * step] = 1;
  }
}

/** What of `within` is connected, by sides, with a seed. */
function connected(seeds, within) {
  const { height, width } = within, region = mask(height, width), open = [];
  const take = (i) => {
    if (!within.data[i] || region.data[i]) return;
    region.data[i] = 1;
    open.push(i);
  };
  seeds.data.forEach((seed, i) => { if (seed) take(i); });
  while (open.length) {
    const i = open.pop(), x = i % width;
    if (x) take(i - 1);
    if (x < width - 1) take(i + 1);
    if (i >= width) take(i - width);
    if (i < width * (height - 1)) take(i + width);
  }
  return region;
}

const border = (like) => where(like, (i) => {
  const y = Math.floor(i / like.width), x = i % like.width;
  return !y || !x || y === like.height - 1 || x === like.width - 1;
});

function quantile(values, share) {
  const step = Math.max(1, Math.floor(values.length / SAMPLE)), sample = values.filter((_, i) => i % step === 0).sort();
  return sample[Math.max(1, round(share * sample.length)) - 1];
}
