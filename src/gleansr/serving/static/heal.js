// Removing a spot: what was brushed over is filled with texture from near by, whose colours are shifted so that they fit at the border (Pérez,
// Gangnet, Blake, "Poisson image editing", 2003: the shift is smooth inside, which needs no gradients).
import { distance } from "./brush.js";
import { around, clip, copy, union, whole } from "./pixels.js";

const SAMPLES = 400;  // pixels around the hole by which places are compared
const DIRECTIONS = 24;
const DISTANCES = [1.1, 1.4, 1.8, 2.4, 3.2, 4.5];  // of a place from the hole, in sizes of the hole
const MARK = 0.35;  // how much of the brush's path shows while it is drawn

/** A stroke that removes what it covers; see `begin` in tools.js. */
export class Heal {
  constructor(layers, brush) {
    Object.assign(this, { layers, brush, covered: new Uint8Array(layers.before.width * layers.before.height), all: null, touched: null });
  }

  move(from, to) {
    const { width } = this.layers.before, { radius } = this.brush;
    const rect = clip(around(from, to, radius), whole(this.layers.before));
    if (!rect) return;
    for (let y = rect.top; y < rect.bottom; y++) {
      for (let x = rect.left; x < rect.right; x++) {
        if (distance(x + 0.5, y + 0.5, from, to) <= radius) this.covered[y * width + x] = 1;
      }
    }
    this.touched = union(this.touched, rect);
    this.all = union(this.all, rect);
  }

  hold() {}

  /** Shows the path until the stroke ends. */
  render() {
    const { before, edited } = this.layers, rect = this.touched;
    this.touched = null;
    if (!rect) return null;
    for (let y = rect.top; y < rect.bottom; y++) {
      for (let x = rect.left, i = y * before.width + x; x < rect.right; x++, i++) {
        if (!this.covered[i]) continue;
        for (let c = 0; c < 3; c++) edited.data[4 * i + c] = before.data[4 * i + c] + (255 - before.data[4 * i + c]) * MARK;
      }
    }
    return rect;
  }

  /** Fills what was covered. */
  finish() {
    const { before, edited } = this.layers, { all } = this;
    if (!all) return;
    copy(before, edited, all);
    heal(edited, this.covered, all, this.brush.strength);
    this.touched = null;
  }
}

/**
 * Fills a hole in an image.
 * @param {ImageData} image is changed
 * @param {Uint8Array} hole 1 for each pixel of the image that is filled
 * @param {import("./pixels.js").Rect} rect holds the hole
 * @param {number} strength 1 fills it wholly, less mixes with what was there
 */
export function heal(image, hole, rect, strength = 1) {
  const area = clip({ left: rect.left - 1, top: rect.top - 1, right: rect.right + 1, bottom: rect.bottom + 1 }, whole(image));
  const offset = nearby(image, hole, rect) ?? { dx: 0, dy: 0 }, { data, width } = image;
  const across = area.right - area.left, down = area.bottom - area.top;
  const fixed = new Uint8Array(across * down), shift = [0, 1, 2, 3].map(() => new Float32Array(across * down));
  const flat = !offset.dx && !offset.dy;  // without a place to copy from, only the smooth shift fills the hole
  each(area, width, (at, i) => {
    fixed[i] = hole[at] ? 0 : 1;
    if (!fixed[i]) return;
    const from = at + offset.dy * width + offset.dx, there = !flat && inside(image, at, offset);
    for (let c = 0; c < 4; c++) shift[c][i] = data[4 * at + c] - (there ? data[4 * from + c] : 0);
    if (!flat && !there) fixed[i] = 2;  // the border of the image has no counterpart: it says nothing about the shift
  });
  for (const plane of shift) smoothly(plane, fixed, across, down);
  each(area, width, (at, i) => {
    if (!hole[at]) return;
    const from = at + offset.dy * width + offset.dx;
    for (let c = 0; c < 4; c++) {
      const filled = (flat ? 0 : data[4 * from + c]) + shift[c][i];
      data[4 * at + c] = data[4 * at + c] + (filled - data[4 * at + c]) * strength;
    }
  });
}

/** Calls `work` with the place in the image, and in the rectangle, of each pixel of the rectangle. */
function each({ left, top, right, bottom }, width, work) {
  for (let y = top, i = 0; y < bottom; y++) for (let x = left; x < right; x++, i++) work(y * width + x, i);
}

function inside({ width, height }, at, { dx, dy }) {
  const x = at % width + dx, y = Math.floor(at / width) + dy;
  return x >= 0 && y >= 0 && x < width && y < height;
}

/** How far away the place is that fits best around the hole, null if the image has none. */
function nearby(image, hole, rect) {
  const { width, height, data } = image, size = Math.max(rect.right - rect.left, rect.bottom - rect.top), margin = Math.max(2, Math.round(size / 6));
  const ring = [], area = clip({ left: rect.left - margin, top: rect.top - margin, right: rect.right + margin, bottom: rect.bottom + margin }, whole(image));
  each(area, width, (at) => { if (!hole[at] && touches(hole, at, width, height, margin)) ring.push(at); });
  const step = Math.max(1, Math.floor(ring.length / SAMPLES)), samples = ring.filter((_, i) => i % step === 0);
  let best = null;
  const consider = (dx, dy) => {
    if (rect.left + dx < 0 || rect.top + dy < 0 || rect.right + dx > width || rect.bottom + dy > height) return;
    if (Math.abs(dx) < rect.right - rect.left && Math.abs(dy) < rect.bottom - rect.top && overlaps(hole, rect, width, dx, dy)) return;
    const sums = [0, 0, 0], squares = [0, 0, 0];
    let count = 0;
    for (const at of samples) {
      if (!inside(image, at, { dx, dy })) continue;
      const from = at + dy * width + dx;
      if (hole[from]) continue;
      count++;
      for (let c = 0; c < 3; c++) {
        const off = data[4 * at + c] - data[4 * from + c];
        sums[c] += off;
        squares[c] += off * off;
      }
    }
    if (count < samples.length / 2) return;
    // A difference that is the same all around is no fault, since colours are shifted; a far place is a little worse than a near one.
    const cost = [0, 1, 2].reduce((all, c) => all + squares[c] / count - 0.9 * (sums[c] / count) ** 2, 0) * (1 + 0.05 * Math.hypot(dx, dy) / size);
    if (!best || cost < best.cost) best = { dx, dy, cost };
  };
  for (const far of DISTANCES) {
    for (let i = 0; i < DIRECTIONS; i++) {
      const angle = 2 * Math.PI * i / DIRECTIONS;
      consider(Math.round(Math.cos(angle) * far * size), Math.round(Math.sin(angle) * far * size));
    }
  }
  if (best) for (let by = Math.max(1, Math.round(size / 8)); ; by = Math.floor(by / 2)) {
    const { dx, dy } = best;
    for (const [x, y] of [[-by, 0], [by, 0], [0, -by], [0, by]]) consider(dx + x, dy + y);
    if (best.dx !== dx || best.dy !== dy) by *= 2;  // once more with the same step
    else if (by === 1) break;
  }
  return best;
}

/** Whether the hole has a pixel within `reach` rows and columns of a place. */
function touches(hole, at, width, height, reach) {
  const x = at % width, y = Math.floor(at / width);
  for (let v = Math.max(y - reach, 0); v <= Math.min(y + reach, height - 1); v++) {
    for (let u = Math.max(x - reach, 0); u <= Math.min(x + reach, width - 1); u++) if (hole[v * width + u]) return true;
  }
  return false;
}

function overlaps(hole, rect, width, dx, dy) {
  for (let y = rect.top; y < rect.bottom; y++) {
    for (let x = rect.left; x < rect.right; x++) if (hole[y * width + x] && hole[(y + dy) * width + x + dx]) return true;
  }
  return false;
}

/**
 * Continues the values of fixed pixels smoothly into the others: Laplace's equation, first at half the size, then by over-relaxation.
 * @param {Float32Array} plane is changed
 * @param {Uint8Array} fixed 1: the value stands; 0: it is found; 2: it has none, and nothing flows through it
 */
export function smoothly(plane, fixed, width, height) {
  if (Math.min(width, height) > 8) {
    const halfWidth = Math.ceil(width / 2), halfHeight = Math.ceil(height / 2), half = new Float32Array(halfWidth * halfHeight);
    const kinds = new Uint8Array(half.length).fill(2), counts = new Uint8Array(half.length);
    for (let y = 0, i = 0; y < height; y++) {
      for (let x = 0; x < width; x++, i++) {
        const at = (y >> 1) * halfWidth + (x >> 1);
        if (fixed[i] === 1) {
          half[at] += plane[i];
          counts[at]++;
          kinds[at] = 1;
        } else if (fixed[i] === 0 && kinds[at] === 2) kinds[at] = 0;
      }
    }
    for (let i = 0; i < half.length; i++) if (counts[i]) half[i] /= counts[i];
    smoothly(half, kinds, halfWidth, halfHeight);
    for (let y = 0, i = 0; y < height; y++) for (let x = 0; x < width; x++, i++) if (fixed[i] === 0) plane[i] = half[(y >> 1) * halfWidth + (x >> 1)];
  }
  const free = [];
  for (let i = 0; i < plane.length; i++) if (fixed[i] === 0) free.push(i);
  for (let round = 0; round < 40; round++) {
    for (const i of free) {
      const x = i % width;
      let sum = 0, count = 0;
      if (x > 0 && fixed[i - 1] !== 2) { sum += plane[i - 1]; count++; }
      if (x < width - 1 && fixed[i + 1] !== 2) { sum += plane[i + 1]; count++; }
      if (i >= width && fixed[i - width] !== 2) { sum += plane[i - width]; count++; }
      if (i + width < plane.length && fixed[i + width] !== 2) { sum += plane[i + width]; count++; }
      if (count) plane[i] += 1.6 * (sum / count - plane[i]);
    }
  }
}
