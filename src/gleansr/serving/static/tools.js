// The brushes: what a stroke does to an image. All but smoothing read the image as it was before the stroke and write to the edited one, so that
// a long stroke neither blurs nor adds up.
import { distance, falloff } from "./brush.js";
import { Heal } from "./heal.js";
import { Move } from "./move.js";
import { around, clip, union, whole } from "./pixels.js";
import { Warp } from "./warp.js";

/** Writes to `out` at `at` what is `part` of 255 of the way from `below` at `at` to `above` at `from`. */
function blend(out, at, below, above, from, part) {
  const under = below[at + 3], over = above[from + 3];
  if (under === 255 && over === 255 || part === 0 || part === 255) {
    for (let c = 0; c < 4; c++) {
      // Rounded away from what was there, so that erasing again and again gets to the base.
      const way = (above[from + c] - below[at + c]) * part / 255;
      out[at + c] = below[at + c] + Math.sign(way) * Math.ceil(Math.abs(way));
    }
    return;
  }
  const alpha = (under * (255 - part) + over * part) / 255;  // of which each colour has its share
  for (let c = 0; c < 3; c++) out[at + c] = alpha ? (below[at + c] * under * (255 - part) + above[from + c] * over * part) / (255 * alpha) : 0;
  out[at + 3] = alpha;
}

/** Paint, and erasing to the base: each pixel is covered as much as the nearest part of the stroke covers it. */
class Cover {
  constructor(layers, brush, erases) {
    Object.assign(this, { layers, brush, erases, covered: new Uint8Array(layers.before.width * layers.before.height), touched: null });
    // An eraser that is soft to its middle would restore nothing wholly.
    this.hardness = erases ? Math.max(brush.hardness, 0.5) : brush.hardness;
  }

  move(from, to) {
    const { width } = this.layers.before, { radius, strength } = this.brush;
    const rect = clip(around(from, to, radius), whole(this.layers.before));
    if (!rect) return;
    for (let y = rect.top; y < rect.bottom; y++) {
      for (let x = rect.left; x < rect.right; x++) {
        const cover = falloff(distance(x + 0.5, y + 0.5, from, to) / radius, this.hardness) * strength * to.pressure * 255;
        if (cover > this.covered[y * width + x]) this.covered[y * width + x] = Math.round(cover);
      }
    }
    this.touched = union(this.touched, rect);
  }

  hold() {}

  render() {
    const rect = this.touched, { base, before, edited } = this.layers, { width } = before;
    this.touched = null;
    if (!rect) return null;
    const [red, green, blue] = this.brush.colour;
    const colour = new Uint8ClampedArray([red, green, blue, 255]);
    for (let y = rect.top; y < rect.bottom; y++) {
      for (let x = rect.left, i = y * width + x; x < rect.right; x++, i++) {
        if (this.erases) blend(edited.data, i * 4, before.data, base.data, i * 4, this.covered[i]);
        else blend(edited.data, i * 4, before.data, colour, 0, this.covered[i]);
      }
    }
    return rect;
  }
}

/** Mixes the image with its local mean, the more the longer the brush stays. */
class Smooth {
  constructor(layers, brush) {
    this.step = Math.max(brush.radius / 4, 1);  // way between dabs
    Object.assign(this, { layers, brush, touched: null, way: this.step, time: 0 });
  }

  move(from, to) {
    const far = Math.hypot(to.x - from.x, to.y - from.y);
    for (this.way += far; this.way >= this.step;) {
      this.way -= this.step;
      const along = far ? 1 - this.way / far : 1;
      this.dab({ x: from.x + along * (to.x - from.x), y: from.y + along * (to.y - from.y), pressure: to.pressure }, 1);
    }
  }

  hold(at, seconds) {
    this.time += seconds;
    if (this.time < 0.06) return;
    this.dab(at, Math.min(this.time * 8, 1));
    this.time = 0;
  }

  dab(at, amount) {
    const rect = clip(around(at, at, this.brush.radius), whole(this.layers.edited));
    if (!rect) return;
    smooth(this.layers.edited, rect, at, { ...this.brush, strength: this.brush.strength * amount * at.pressure });
    this.touched = union(this.touched, rect);
  }

  render() {
    const rect = this.touched;
    this.touched = null;
    return rect;
  }
}

/** Mixes the pixels of a rectangle, under a brush at a point, with the mean of a square of a quarter of the brush around each. */
export function smooth(image, rect, at, { radius, hardness, strength }) {
  const reach = Math.max(1, Math.round(radius / 8)), { width, height, data } = image;
  const area = clip({ left: rect.left - reach, top: rect.top - reach, right: rect.right + reach, bottom: rect.bottom + reach }, whole(image));
  const across = area.right - area.left + 1, down = area.bottom - area.top + 1;
  const sums = new Float64Array(across * down);

  // The sum of channel `c`, of colours times alpha, over all that is left of and above each pixel.
  function sum(c) {
    for (let y = 1; y < down; y++) {
      for (let x = 1, row = 0, from = ((y - 1 + area.top) * width + area.left) * 4; x < across; x++, from += 4) {
        row += c === 3 ? data[from + 3] : data[from + c] * data[from + 3];
        sums[y * across + x] = sums[(y - 1) * across + x] + row;
      }
    }
  }

  // Calls `write` with each pixel's place, number in the rectangle, sum over its square, and how many pixels that has.
  function each(write) {
    for (let y = rect.top, i = 0; y < rect.bottom; y++) {
      const top = (Math.max(y - reach, 0) - area.top) * across, bottom = (Math.min(y + reach + 1, height) - area.top) * across;
      for (let x = rect.left; x < rect.right; x++, i++) {
        const left = Math.max(x - reach, 0) - area.left, right = Math.min(x + reach + 1, width) - area.left;
        write((y * width + x) * 4, i, sums[bottom + right] - sums[top + right] - sums[bottom + left] + sums[top + left],
          (bottom - top) / across * (right - left));
      }
    }
  }

  const parts = new Float32Array((rect.right - rect.left) * (rect.bottom - rect.top)), alphas = new Float64Array(parts.length);
  for (let y = rect.top, i = 0; y < rect.bottom; y++) {
    for (let x = rect.left; x < rect.right; x++, i++) {
      parts[i] = falloff(Math.hypot(x + 0.5 - at.x, y + 0.5 - at.y) / radius, hardness) * strength;
    }
  }
  sum(3);
  if (sums.at(-1) === 255 * (across - 1) * (down - 1)) {
    for (let c = 0; c < 3; c++) {
      sum(c);
      each((place, i, total, count) => { if (parts[i]) data[place + c] += (total / (255 * count) - data[place + c]) * parts[i]; });
    }
    return;
  }
  const mixed = new Uint8ClampedArray(parts.length);
  each((place, i, total, count) => {
    alphas[i] = total;
    mixed[i] = data[place + 3] + (total / count - data[place + 3]) * parts[i];
  });
  for (let c = 0; c < 3; c++) {
    sum(c);
    each((place, i, total, count) => {
      const seen = alphas[i] / count * parts[i], part = seen && seen / (seen + data[place + 3] * (1 - parts[i]));
      if (part) data[place + c] += (total / alphas[i] - data[place + c]) * part;
    });
  }
  each((place, i) => { data[place + 3] = mixed[i]; });
}

/**
 * Starts a stroke. It has `move(from, to)`, `hold(at, seconds)` for when the brush stays where it is, and `render()`, which writes to the
 * edited image and returns the rectangle that it wrote, or null. Some also have `finish()`, which writes when the stroke ends.
 * @param {"push"|"enlarge"|"shrink"|"smooth"|"heal"|"move"|"paint"|"erase"} tool
 * @param {import("./brush.js").Layers} layers
 * @param {import("./brush.js").Brush} brush
 */
export function begin(tool, layers, brush) {
  if (tool === "paint" || tool === "erase") return new Cover(layers, brush, tool === "erase");
  if (tool === "smooth") return new Smooth(layers, brush);
  if (tool === "heal") return new Heal(layers, brush);
  if (tool === "move") return new Move(layers, brush);
  return new Warp(layers, brush, tool);
}
