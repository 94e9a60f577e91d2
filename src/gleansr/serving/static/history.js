// Undo and redo. A step holds the tiles that it changed, not images: what they had before. Taking it back swaps them with what they have now, so
// that the same tiles then serve to do it again.
import { difference, union, words } from "./pixels.js";

const TILE = 64;

/** @typedef {{image: ImageData, left: number, top: number, width: number, pixels: Uint32Array}} Tile */

/**
 * The tiles in which two images of one size differ inside a rectangle.
 * @param {ImageData} before what the tiles hold
 * @param {ImageData} image the image that they were changed in, which undoing writes to
 * @param {import("./pixels.js").Rect} rect
 * @returns {Tile[]}
 */
export function changes(before, image, rect) {
  const tiles = [], source = words(before);
  for (let y = rect.top - rect.top % TILE; y < rect.bottom; y += TILE) {
    for (let x = rect.left - rect.left % TILE; x < rect.right; x += TILE) {
      const area = difference(before, image, {
        left: x, top: y, right: Math.min(x + TILE, image.width), bottom: Math.min(y + TILE, image.height),
      });
      if (!area) continue;
      const { left, top, right, bottom } = area, width = right - left, pixels = new Uint32Array(width * (bottom - top));
      for (let row = top; row < bottom; row++) {
        pixels.set(source.subarray(row * image.width + left, row * image.width + right), (row - top) * width);
      }
      tiles.push({ image, left, top, width, pixels });
    }
  }
  return tiles;
}

/** What was done, up to so many bytes; then the oldest steps are forgotten. */
export class History {
  constructor(limit = 256 * 2 ** 20) {
    this.limit = limit;
    this.clear();
  }

  clear() {
    Object.assign(this, { done: [], undone: [], bytes: 0, number: 0, state: 0 });
  }

  /** Adds a step; what was undone can then not be done again. Returns false for one that changed nothing. */
  add(label, tiles) {
    if (!tiles.length) return false;
    for (const step of this.undone) this.bytes -= step.bytes;
    const bytes = tiles.reduce((sum, tile) => sum + tile.pixels.byteLength, 0);
    this.done.push({ label, tiles, bytes, from: this.state, to: ++this.number });
    this.undone = [];
    this.state = this.number;  // each state of the image has a number of its own
    for (this.bytes += bytes; this.bytes > this.limit && this.done.length > 1;) this.bytes -= this.done.shift().bytes;
    return true;
  }

  /** Takes the last step back. Returns it with the rectangle that it changed, null if there is none. */
  undo() {
    return this.swap(this.done, this.undone, "from");
  }

  redo() {
    return this.swap(this.undone, this.done, "to");
  }

  swap(from, to, state) {
    const step = from.pop();
    if (!step) return null;
    to.push(step);
    this.state = step[state];
    let rect = null;
    for (const { image, left, top, width, pixels } of step.tiles) {
      const target = words(image), height = pixels.length / width;
      for (let row = 0; row < height; row++) {
        const at = (top + row) * image.width + left, now = target.slice(at, at + width);
        target.set(pixels.subarray(row * width, (row + 1) * width), at);
        pixels.set(now, row * width);
      }
      rect = union(rect, { left, top, right: left + width, bottom: top + height });
    }
    return { ...step, rect };
  }
}
