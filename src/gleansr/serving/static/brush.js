// What all brushes share.

/**
 * What a stroke works on, images of one size.
 * @typedef {{base: ImageData, before: ImageData, edited: ImageData}} Layers
 *   base: what erasing brings back; before: the image before the stroke; edited: what the stroke writes
 * @typedef {{radius: number, hardness: number, strength: number, colour: number[]}} Brush
 *   radius in pixels; hardness and strength from 0 to 1; colour red, green, blue from 0 to 255
 * @typedef {{x: number, y: number, pressure: number}} Point
 *   in pixels of the image, whose first one has its centre at 0.5, 0.5; pressure from 0 to 1
 */

/** How much of a brush acts at `t` of its radius: 1 up to `hardness` of it, then down to 0 at its rim, smoothly. */
export function falloff(t, hardness) {
  if (t >= 1) return 0;
  if (t <= hardness) return 1;
  const rest = (1 - t) / (1 - hardness);
  return rest * rest * (3 - 2 * rest);
}

/** How far a point is from the way between two others. */
export function distance(x, y, from, to) {
  const dx = to.x - from.x, dy = to.y - from.y, length = dx * dx + dy * dy;
  const along = length ? Math.min(Math.max(((x - from.x) * dx + (y - from.y) * dy) / length, 0), 1) : 0;
  return Math.hypot(x - from.x - along * dx, y - from.y - along * dy);
}
