// Draws images of any size at any zoom. Canvases of an image's tiles, shrunk by powers of two, are made when they are first seen, and renewed
// only where the image has changed, so that a stroke on a large image costs what the stroke touches.
import { clip, shrink, union, whole } from "./pixels.js";

const SIDE = 1024;
const MOST = 48;  // tiles kept, of 4 MiB each

/** @typedef {{scale: number, x: number, y: number}} View scale: screen pixels per image pixel; x, y: where the image's corner is on screen */

/** An image in memory, ready to be drawn. */
export class Tiles {
  /** @param {ImageData} image is drawn as it is when `changed` was last called */
  constructor(image) {
    this.image = image;
    this.tiles = new Map();
  }

  /** Tells that the pixels of a rectangle have changed; without one, all. */
  changed(rect = whole(this.image)) {
    for (const tile of this.tiles.values()) tile.stale = union(tile.stale, clip(rect, tile.area));
  }

  /** Draws what of the image lies in `seen`, a rectangle of screen pixels. */
  draw(context, view, seen) {
    const level = Math.max(0, Math.floor(Math.log2(1 / view.scale))), step = SIDE << level, { image } = this;
    const area = clip({
      left: (seen.left - view.x) / view.scale, top: (seen.top - view.y) / view.scale,
      right: (seen.right - view.x) / view.scale, bottom: (seen.bottom - view.y) / view.scale,
    }, whole(image));
    if (!area) return;
    for (let top = area.top - area.top % step; top < area.bottom; top += step) {
      for (let left = area.left - area.left % step; left < area.right; left += step) {
        const tile = this.tile(level, left, top), { right, bottom } = tile.area;
        // Whole screen pixels, so that no seam shows between tiles.
        const x = Math.round(left * view.scale + view.x), y = Math.round(top * view.scale + view.y);
        context.drawImage(tile.canvas, 0, 0, (right - left) / tile.by, (bottom - top) / tile.by,
          x, y, Math.round(right * view.scale + view.x) - x, Math.round(bottom * view.scale + view.y) - y);
      }
    }
  }

  tile(level, left, top) {
    const key = `${level} ${left} ${top}`, by = 1 << level;
    let tile = this.tiles.get(key);
    this.tiles.delete(key);
    if (!tile) {
      const area = clip({ left, top, right: left + SIDE * by, bottom: top + SIDE * by }, whole(this.image));
      const canvas = new OffscreenCanvas(Math.ceil((area.right - left) / by), Math.ceil((area.bottom - top) / by));
      tile = { area, by, canvas, context: canvas.getContext("2d"), stale: area };
    }
    this.tiles.set(key, tile);  // last, as the one most recently used
    if (this.tiles.size > MOST) this.tiles.delete(this.tiles.keys().next().value);
    if (tile.stale) this.renew(tile);
    return tile;
  }

  renew(tile) {
    const { area, by, context, stale } = tile, start = (value, first) => first + Math.floor((value - first) / by) * by;
    const left = start(stale.left, area.left), top = start(stale.top, area.top);
    const right = Math.min(start(stale.right - 1, area.left) + by, area.right);
    const bottom = Math.min(start(stale.bottom - 1, area.top) + by, area.bottom);
    context.putImageData(shrink(this.image, { left, top, right, bottom }, by), (left - area.left) / by, (top - area.top) / by);
    tile.stale = null;
  }
}
