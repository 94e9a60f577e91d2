// Enlarges photos by the general model in tiles that fade into each other, in bounded memory: gleansr.photos.background.
import { clamp, crop, map, planes, signed, unsigned, write } from "./planes.js";
import { resize } from "./resize.js";

/** @typedef {import("./planes.js").Planes} Planes */

const TILE = 192;  // side of a tile's own area in pixels of the photo
const OVERLAP = 16;  // pixels beyond it; the outer half is dropped, the inner half fades into the neighbour
const REACH = 2;  // of bicubic's kernel

/**
 * Enlarges an image.
 * @param {import("./runtime.js").Runtime} runtime
 * @param {import("./planes.js").ImagePlanes} picture
 * @param {number} scale
 * @param {(done: number, all: number) => Promise<void>} report is called after each tile; what it throws ends the work
 * @returns {Promise<ImageData>}
 */
export async function enlarge(runtime, { colour, alpha, grey }, scale, report) {
  const { width, height } = colour, rows = windows(height, scale), columns = windows(width, scale);
  const image = new ImageData(width * scale, height * scale);
  let pending = planes(3, 0, width * scale), done = 0, finished = 0;
  for (const [i, down] of rows.entries()) {
    const total = planes(3, down.last * scale - done, width * scale);
    for (let c = 0; c < 3; c++) total.data.set(pending.data.subarray(c * pending.height * pending.width, (c + 1) * pending.height * pending.width), c * total.height * total.width);
    for (const across of columns) {
      const part = crop(colour, across.first, down.first, across.last - across.first, down.last - down.first);
      add(total, await tile(runtime, part, scale), down, across, down.first * scale - done, across.first * scale);
      await report(++finished, rows.length * columns.length);
    }
    const ready = i + 1 < rows.length ? rows[i + 1].first * scale : height * scale;
    write(image, crop(total, 0, 0, total.width, ready - done), alpha && band(alpha, scale, done, ready), done, grey);
    pending = crop(total, 0, ready - done, total.width, total.height - (ready - done));
    done = ready;
  }
  return image;
}

/** Planes in [0, 1] enlarged by the general model, a residual network: bicubic, and what it adds. */
async function tile(runtime, part, scale) {
  const { general } = runtime.list, lr = signed(part), residual = await runtime.forward(general, "low", lr);
  const smooth = resize(lr, residual.height, residual.width);
  const sr = unsigned(map(smooth, (value, i) => value + residual.data[i]));
  return scale === general.scale ? sr : resize(sr, part.height * scale, part.width * scale);
}

function add(total, { data, width, height, count }, down, across, top, left) {
  for (let c = 0, from = 0; c < count; c++) {
    for (let y = 0; y < height; y++) {
      const weight = down.weights[y];
      for (let x = 0, to = (c * total.height + top + y) * total.width + left; x < width; x++, from++, to++) {
        total.data[to] += data[from] * weight * across.weights[x];
      }
    }
  }
}

/** First and last pixel of each tile along an axis of the photo, and the weights of its enlarged pixels. */
function windows(length, scale) {
  const tiles = [], fade = OVERLAP / 2, sums = new Float32Array(length * scale);
  for (let from = 0; from < length; from += TILE) {
    const to = Math.min(length, from + TILE), first = Math.max(0, from - OVERLAP), last = Math.min(length, to + OVERLAP);
    const weights = Float32Array.from({ length: (last - first) * scale }, (_, i) => {
      const at = (first * scale + i + 0.5) / scale;
      const rises = from > 0 ? clamp((at - from) / (2 * fade) + 0.5, 0, 1) : 1, falls = to < length ? clamp(0.5 - (at - to) / (2 * fade), 0, 1) : 1;
      return rises * falls;
    });
    weights.forEach((weight, i) => { sums[first * scale + i] += weight; });
    tiles.push({ first, last, weights });
  }
  for (const { first, weights } of tiles) weights.forEach((weight, i) => { weights[i] = weight / sums[first * scale + i]; });
  return tiles;
}

/** Rows `top` to `bottom` of the enlarged alpha. */
function band(alpha, scale, top, bottom) {
  const first = Math.max(0, Math.floor(top / scale) - REACH), last = Math.min(alpha.height, Math.ceil(bottom / scale) + REACH);
  const part = crop(alpha, 0, first, alpha.width, last - first), large = resize(part, part.height * scale, part.width * scale);
  return crop(large, 0, top - first * scale, large.width, bottom - top);
}
