// Pastes heads that models have enlarged into the enlarged photo: gleansr.photos.paste and gleansr.photos.sharpness, for upright squares.
import { content } from "./heads.js";
import { clamp, map, planes, round } from "./planes.js";
import { resize } from "./resize.js";

/** @typedef {import("./planes.js").Planes} Planes */
/** @typedef {import("./heads.js").Square} Square */

const FEATHER = 0.12;  // width of the fade at the border, as a share of the side
const COARSE = 16;  // cells along a side that take the photo's colours
const CHANGED = [2 / 255, 6 / 255];  // in [-1, 1]: the model's detail replaces the photo's where it changes more than that
const SHARE = 0.9;  // of the model's detail: a photo that has so much of its own resolves it
const MAX_COLUMNS = 512;  // largest width at which that is looked at
const ROWS = 128;  // of the result that are blended at a time

/**
 * A head with its model's input and output.
 * @typedef {{square: Square, lr: Planes, sr: Planes, resolved: number|null}} Patch
 *   lr, sr: in [-1, 1]; resolved: columns of the square that the photo resolves, whose detail is kept; null: the model's detail replaces it
 */

/** @typedef {{coarse: number, fine: number, amount: number}} Octave  the detail of a photo within a square between two sizes */

/** The detail of a photo within a square, beyond a model's input of so many pixels. @returns {Octave[]} */
export function octaves(colour, square, columns) {
  const largest = Math.min(MAX_COLUMNS, square.width), sizes = [columns];
  while (sizes.at(-1) * 4 <= largest * 3) sizes.push(Math.min(2 * sizes.at(-1), largest));
  if (sizes.length === 1) return [];
  const photo = content(colour, square, sizes.at(-1));
  return sizes.slice(1).map((fine, i) => ({ coarse: sizes[i], fine, amount: detail(photo, sizes[i], fine) }));
}

/** Columns of a square that the photo resolves: it has about as much detail as the model's output; null: no more than the model's input. */
export function resolved(found, sr, { width }) {
  const made = map(sr, (value) => clamp(value, -1, 1) / 2);
  let columns = null;
  for (const { coarse, fine, amount } of found) {
    if (fine > sr.width || amount < SHARE * detail(made, coarse, fine)) return columns;
    columns = fine;
  }
  return columns && width;
}

/** Root mean square of the detail between two sizes, in the middle of an image. */
function detail(from, coarse, fine) {
  const image = resized(from, fine), octave = without(image, coarse), margin = Math.floor(fine / 8);
  let sum = 0, count = 0;
  for (let c = 0; c < octave.count; c++) {
    for (let y = margin; y < fine - margin; y++) {
      for (let x = margin; x < fine - margin; x++, count++) sum += octave.data[(c * fine + y) * fine + x] ** 2;
    }
  }
  return Math.sqrt(sum / count);
}

const resized = (from, size) => from.width === size ? from : resize(from, size, size);

/** What shrinking an image to a size loses. */
function without(image, size) {
  const { data } = resized(resized(image, size), image.width);
  return map(image, (value, i) => value - data[i]);
}

/** A patch at its place in the enlarged photo. */
class Layer {
  /** @param {{width: number, height: number}} photo */
  constructor(patch, photo, scale) {
    const { left, top, width } = patch.square, right = left + width, bottom = top + width;
    Object.assign(this, {
      patch, scale, width: width * scale, x: left * scale, y: top * scale, made: null,
      left: Math.max(0, left) * scale, top: Math.max(0, top) * scale,
      right: Math.min(photo.width, right) * scale, bottom: Math.min(photo.height, bottom) * scale,
      // A side at or beyond the photo's border has nothing to fade into.
      across: weights(width * scale, left <= 0, right >= photo.width), down: weights(width * scale, top <= 0, bottom >= photo.height),
    });
  }

  /** What is added to the photo, three planes, and the share of the photo that it replaces, at the density of the result. */
  get planes() {
    return this.made ??= resized(this.compute(), this.width);
  }

  compute() {
    const { lr, sr, resolved: own } = this.patch, size = Math.min(sr.width, this.width), bounded = (value) => clamp(value, -1, 1);
    const large = map(resize(lr, sr.height, sr.width), bounded), made = map(sr, (value, i) => bounded(value) - large.data[i]);
    const change = resized(made, size), up = resized(large, size), coarse = Math.max(1, round(Math.min(COARSE, lr.width / 2)));
    const fine = own ? Math.min(size, own) : coarse, added = without(change, Math.max(fine, coarse));
    const out = planes(4, size, size), area = size * size;
    if (!own) out.data.set(changed(added), 3 * area);
    for (let i = 0; i < 3 * area; i++) out.data[i] = (added.data[i] + out.data[3 * area + i % area] * (up.data[i] + 1)) / 2;
    return out;
  }
}

/** Along one axis of a patch: its opacity, and its priority where patches overlap, which is higher in the middle. */
function weights(length, openStart, openEnd) {
  const opacity = new Float32Array(length), priority = new Float32Array(length);
  for (let i = 0; i < length; i++) {
    const at = (i + 0.5) / length, rise = (distance, open) => {
      const share = open ? 1 : clamp(distance / FEATHER, 0, 1);
      return share * share * (3 - 2 * share);
    };
    opacity[i] = rise(at, openStart) * rise(1 - at, openEnd);
    priority[i] = (4 * at * (1 - at)) ** 4;
  }
  return { opacity, priority };
}

/**
 * Pastes heads into an enlarged photo. Where squares overlap, a pixel mostly shows the head whose middle is nearer.
 * @param {ImageData} image the enlarged photo, which is changed
 * @param {number} scale
 * @param {Patch[]} patches
 * @param {boolean} grey
 */
export function paste(image, scale, patches, grey) {
  const photo = { width: image.width / scale, height: image.height / scale }, layers = patches.map((patch) => new Layer(patch, photo, scale));
  for (let first = 0; first < image.height; first += ROWS) {
    const last = Math.min(first + ROWS, image.height), here = layers.filter(({ top, bottom }) => top < last && bottom > first);
    if (here.length) blend(image, first, last, here, grey);
    for (const layer of here) if (layer.bottom <= last) layer.made = null;  // frees its memory
  }
}

function blend({ data, width }, first, last, layers, grey) {
  const left = Math.min(...layers.map((layer) => layer.left)), right = Math.max(...layers.map((layer) => layer.right)), across = right - left;
  const size = across * (last - first), total = new Float32Array(size), kept = new Float32Array(size).fill(1), added = new Float32Array(3 * size);
  const touched = new Uint8Array(size);
  for (const layer of layers) {
    each(layer, (at, opacity, priority) => { total[at] += priority; });
  }
  for (const layer of layers) {
    const { planes: { data: values }, width: side } = layer, area = side * side;
    each(layer, (at, opacity, priority, from) => {
      const share = opacity * priority / total[at];
      if (!(share > 0)) return;
      touched[at] = 1;
      kept[at] -= share * clamp(values[3 * area + from], 0, 1);
      for (let c = 0; c < 3; c++) added[c * size + at] += share * values[c * area + from];
    });
  }
  for (let y = first, at = 0; y < last; y++) {
    for (let x = left, to = (y * width + left) * 4; x < right; x++, at++, to += 4) {
      const alpha = data[to + 3] / 255;
      if (!touched[at] || !alpha) continue;
      for (let c = 0; c < 3; c++) {
        const value = data[to + c] / 255 * alpha * kept[at] + added[c * size + at];  // colours times alpha
        data[to + c] = Math.round(255 * clamp(value / alpha, 0, 1));
      }
      if (grey) data.fill((data[to] * 19595 + data[to + 1] * 38470 + data[to + 2] * 7471 + 0x8000) >> 16, to, to + 3);
    }
  }

  function each(layer, work) {
    const { across: u, down: v, x: startX, y: startY, width: side } = layer;
    for (let y = Math.max(first, layer.top); y < Math.min(last, layer.bottom); y++) {
      const row = y - startY;
      for (let x = layer.left; x < layer.right; x++) {
        const column = x - startX, opacity = u.opacity[column] * v.opacity[row];
        work((y - first) * across + x - left, opacity, opacity * (u.priority[column] * v.priority[row] + 1e-4), row * side + column);
      }
    }
  }
}

/** A smooth map from 0 to 1 of where the model's detail changes anything. */
function changed({ data, width: side }) {
  const count = Math.min(side, 2 * COARSE), cells = new Float32Array(count * count), area = side * side;
  for (let i = 0, at = 0; i < count; i++) {
    for (let j = 0; j < count; j++, at++) {
      for (let y = Math.floor(i * side / count); y < Math.ceil((i + 1) * side / count); y++) {
        for (let x = Math.floor(j * side / count); x < Math.ceil((j + 1) * side / count); x++) {
          for (let c = 0; c < 3; c++) cells[at] = Math.max(cells[at], Math.abs(data[c * area + y * side + x]));
        }
      }
    }
  }
  const [low, high] = CHANGED, around = (values, join) => Float32Array.from(values, (_, at) => {
    const y = Math.floor(at / count), x = at % count, near = [];
    for (let v = Math.max(0, y - 1); v <= Math.min(count - 1, y + 1); v++) {
      for (let u = Math.max(0, x - 1); u <= Math.min(count - 1, x + 1); u++) near.push(values[v * count + u]);
    }
    return join(near);
  });
  const shares = around(cells, (near) => Math.max(...near)).map((amount) => clamp((amount - low) / (high - low), 0, 1));
  return bilinear(around(shares, (near) => near.reduce((sum, value) => sum + value) / near.length), count, side);
}

/** A square of values at another size. */
function bilinear(values, count, side) {
  const out = new Float32Array(side * side), places = Array.from({ length: side }, (_, i) => {
    const at = Math.max(0, (i + 0.5) * count / side - 0.5), first = Math.min(Math.floor(at), count - 1);
    return [first, Math.min(first + 1, count - 1), at - first];
  });
  let to = 0;
  for (const [top, bottom, down] of places) {
    for (const [left, right, across] of places) {
      const mix = (row) => values[row * count + left] * (1 - across) + values[row * count + right] * across;
      out[to++] = mix(top) * (1 - down) + mix(bottom) * down;
    }
  }
  return out;
}
