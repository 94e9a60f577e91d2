// MATLAB's bicubic, with antialiasing when it shrinks: gleansr.images.resize, value for value.
import { planes } from "./planes.js";

/** @typedef {import("./planes.js").Planes} Planes */

/**
 * Resizes planes; not clamped, since bicubic overshoots at edges. Sums have the precision of float64.
 * @param {Planes} from
 * @returns {Planes}
 */
export function resize(from, height, width) {
  const down = (image) => alongHeight(image, height), across = (image) => alongWidth(image, width);
  // The axis that shrinks most goes first, as in MATLAB.
  return height / from.height <= width / from.width ? across(down(from)) : down(across(from));
}

function alongHeight(from, length) {
  const { count, height, width } = from, out = planes(count, length, width), sums = new Float64Array(width);
  const taps = tapsOf(height, length);
  for (let c = 0; c < count; c++) {
    for (let y = 0; y < length; y++) {
      const { indices, weights } = taps[y];
      sums.fill(0);
      for (let i = 0; i < indices.length; i++) {
        const weight = weights[i], start = (c * height + indices[i]) * width;
        for (let x = 0; x < width; x++) sums[x] += weight * from.data[start + x];
      }
      out.data.set(sums, (c * length + y) * width);
    }
  }
  return out;
}

function alongWidth(from, length) {
  const { count, height, width } = from, out = planes(count, height, length), taps = tapsOf(width, length);
  for (let row = 0; row < count * height; row++) {
    const start = row * width, to = row * length;
    for (let x = 0; x < length; x++) {
      const { indices, weights } = taps[x];
      let sum = 0;
      for (let i = 0; i < indices.length; i++) sum += weights[i] * from.data[start + indices[i]];
      out.data[to + x] = sum;
    }
  }
  return out;
}

const REMEMBERED = 64;
const known = new Map();

/** For each output, the indices of its inputs and their weights. */
function tapsOf(length, wanted) {
  const key = `${length} ${wanted}`;
  let taps = known.get(key);
  if (!taps) {
    taps = Array.from({ length: wanted }, (_, at) => tap(at, length, wanted / length));
    if (known.size >= REMEMBERED) known.clear();
    known.set(key, taps);
  }
  return taps;
}

function tap(at, length, scale) {
  const narrow = Math.min(scale, 1), width = 4 / narrow;  // only shrinking widens the kernel
  // The centre in the coordinates of the input, whose pixels are numbered from 1 here as in MATLAB.
  const centre = (at + 1) / scale + 0.5 * (1 - 1 / scale), left = Math.floor(centre - width / 2);
  const sums = new Map();
  let total = 0;
  for (let i = left; i < left + Math.ceil(width) + 2; i++) {
    const weight = cubic(narrow * (centre - i));
    if (!weight) continue;
    // Beyond the border the image is mirrored, its last pixel doubled.
    const wrapped = ((i - 1) % (2 * length) + 2 * length) % (2 * length), index = Math.min(wrapped, 2 * length - 1 - wrapped);
    sums.set(index, (sums.get(index) ?? 0) + weight);
    total += weight;
  }
  return { indices: Int32Array.from(sums.keys()), weights: Float64Array.from(sums.values(), (weight) => weight / total) };
}

/** Keys' cubic with a = -0.5, zero from |x| = 2 on. */
function cubic(value) {
  const x = Math.abs(value);
  if (x <= 1) return (1.5 * x - 2.5) * x * x + 1;
  return x <= 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}
