// Moving a part: what was lassoed goes to another place with a soft edge, and where it was is filled.
import { clip, copy, union, whole } from "./pixels.js";
import { heal } from "./heal.js";

/**
 * What was lassoed.
 * @typedef {{path: Array<{x: number, y: number}>, rect: import("./pixels.js").Rect, weights: Float32Array}} Selection
 *   weights: of each pixel of the rectangle, 1 inside, 0 outside, between them at the soft edge
 */

/**
 * The part of an image inside a path, null if it is nothing.
 * @param {Array<{x: number, y: number}>} path in pixels of the image; its end joins its start
 * @param {{width: number, height: number}} size of the image
 * @returns {Selection|null}
 */
export function select(path, size) {
  const xs = path.map(({ x }) => x), ys = path.map(({ y }) => y);
  const [left, top, right, bottom] = [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
  const soft = Math.max(1, Math.round(Math.min(right - left, bottom - top) / 16));
  const rect = clip({ left: left - soft, top: top - soft, right: right + soft, bottom: bottom + soft }, whole(size));
  if (!rect || path.length < 3) return null;
  const width = rect.right - rect.left, height = rect.bottom - rect.top, canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.beginPath();
  for (const { x, y } of path) context.lineTo(x - rect.left, y - rect.top);
  context.fill();
  const { data } = context.getImageData(0, 0, width, height);
  let weights = Float32Array.from({ length: width * height }, (_, i) => data[4 * i + 3] / 255);
  if (weights.every((weight) => weight < 0.5)) return null;
  for (const along of [1, width]) weights = blurred(weights, width, along, soft);
  return { path, rect, weights };
}

/** The mean over `reach` places to both sides, along rows (1) or columns (the width); places outside count as 0. */
function blurred(values, width, along, reach) {
  const out = new Float32Array(values.length), height = values.length / width;
  const [lines, places, next] = along === 1 ? [height, width, width] : [width, height, 1];
  for (let line = 0; line < lines; line++) {
    let sum = 0;
    const at = (place) => line * next + place * along;
    for (let place = -reach; place < places; place++) {
      if (place + reach < places) sum += values[at(place + reach)];
      if (place - reach - 1 >= 0) sum -= values[at(place - reach - 1)];
      if (place >= 0) out[at(place)] = Math.max(sum, 0) / (2 * reach + 1);
    }
  }
  return out;
}

/** Whether a place is inside a selection. */
export function selects({ rect, weights }, { x, y }) {
  const [u, v] = [Math.floor(x), Math.floor(y)];
  if (u < rect.left || v < rect.top || u >= rect.right || v >= rect.bottom) return false;
  return weights[(v - rect.top) * (rect.right - rect.left) + u - rect.left] >= 0.5;
}

/** A stroke that drags a selection; see `begin` in tools.js. */
export class Move {
  constructor(layers, { selection }) {
    Object.assign(this, { layers, selection, dx: 0, dy: 0, drawn: null, stale: true });
    const { before } = layers, { rect, weights } = selection, hole = new Uint8Array(before.width * before.height);
    this.filled = new ImageData(before.data.slice(), before.width);
    for (let y = rect.top, i = 0; y < rect.bottom; y++) for (let x = rect.left; x < rect.right; x++, i++) if (weights[i] > 0) hole[y * before.width + x] = 1;
    heal(this.filled, hole, rect);
  }

  move(from, to) {
    this.dx += to.x - from.x;
    this.dy += to.y - from.y;
    this.stale = true;
  }

  hold() {}

  render() {
    const { layers: { before, edited }, selection: { rect, weights }, filled } = this, [dx, dy] = [Math.round(this.dx), Math.round(this.dy)];
    if (!this.stale) return null;
    this.stale = false;
    const target = clip({ left: rect.left + dx, top: rect.top + dy, right: rect.right + dx, bottom: rect.bottom + dy }, whole(before));
    const area = union(union(rect, this.drawn), target);
    copy(dx || dy ? filled : before, edited, area);
    if ((dx || dy) && target) {
      for (let y = target.top; y < target.bottom; y++) {
        for (let x = target.left; x < target.right; x++) {
          const weight = weights[(y - dy - rect.top) * (rect.right - rect.left) + x - dx - rect.left];
          const at = 4 * (y * before.width + x), from = at - 4 * (dy * before.width + dx);
          for (let c = 0; c < 4; c++) edited.data[at + c] += (before.data[from + c] - edited.data[at + c]) * weight;
        }
      }
    }
    this.drawn = target;
    return area;
  }
}
