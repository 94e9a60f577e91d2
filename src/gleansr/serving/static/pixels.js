// Rectangles and images in memory. An image is an ImageData: 8-bit RGBA, colour not multiplied with alpha. A rectangle holds its left column
// and top row, but not its right and bottom ones.

/** @typedef {{left: number, top: number, right: number, bottom: number}} Rect */

/** The rectangle that holds both; either may be null. */
export function union(a, b) {
  if (!a || !b) return a ?? b;
  return {
    left: Math.min(a.left, b.left), top: Math.min(a.top, b.top), right: Math.max(a.right, b.right), bottom: Math.max(a.bottom, b.bottom),
  };
}

/** The whole pixels of a rectangle that lie in both, null if none do. */
export function clip(rect, { left = 0, top = 0, right, bottom }) {
  const cut = {
    left: Math.max(Math.floor(rect.left), left), top: Math.max(Math.floor(rect.top), top),
    right: Math.min(Math.ceil(rect.right), right), bottom: Math.min(Math.ceil(rect.bottom), bottom),
  };
  return cut.left < cut.right && cut.top < cut.bottom ? cut : null;
}

/** The rectangle of a whole image. */
export const whole = ({ width, height }) => ({ left: 0, top: 0, right: width, bottom: height });

/** The rectangle around the way from one point to another with a brush of that radius. */
export function around(from, to, radius) {
  return {
    left: Math.min(from.x, to.x) - radius, top: Math.min(from.y, to.y) - radius,
    right: Math.max(from.x, to.x) + radius + 1, bottom: Math.max(from.y, to.y) + radius + 1,
  };
}

const views = new WeakMap();

/** The image's pixels, one number each, to compare and copy them. */
export function words(image) {
  let view = views.get(image);
  if (!view) views.set(image, view = new Uint32Array(image.data.buffer, image.data.byteOffset, image.data.length / 4));
  return view;
}

/** Copies the pixels of a rectangle from one image to another of the same size. */
export function copy(from, to, rect) {
  const source = words(from), target = words(to), { width } = from;
  for (let y = rect.top; y < rect.bottom; y++) {
    target.set(source.subarray(y * width + rect.left, y * width + rect.right), y * width + rect.left);
  }
}

/**
 * Cuts a rectangle out, shrunk by a whole number: each pixel is the mean of by x by pixels, or of as many as are left at the right and bottom.
 * The mean of colours is that of those that can be seen.
 */
export function shrink(image, { left, top, right, bottom }, by = 1) {
  const small = new ImageData(Math.ceil((right - left) / by), Math.ceil((bottom - top) / by)), { width, data } = image;
  if (by === 1) {
    const source = words(image), target = words(small);
    for (let y = top; y < bottom; y++) target.set(source.subarray(y * width + left, y * width + right), (y - top) * small.width);
    return small;
  }
  for (let y = top, out = 0; y < bottom; y += by) {
    for (let x = left; x < right; x += by, out += 4) {
      const lastX = Math.min(x + by, right), lastY = Math.min(y + by, bottom);
      let red = 0, green = 0, blue = 0, alpha = 0;
      for (let v = y; v < lastY; v++) {
        for (let u = x, at = (v * width + x) * 4; u < lastX; u++, at += 4) {
          const opacity = data[at + 3];
          red += data[at] * opacity;
          green += data[at + 1] * opacity;
          blue += data[at + 2] * opacity;
          alpha += opacity;
        }
      }
      if (!alpha) continue;
      small.data[out] = red / alpha;
      small.data[out + 1] = green / alpha;
      small.data[out + 2] = blue / alpha;
      small.data[out + 3] = alpha / ((lastX - x) * (lastY - y));
    }
  }
  return small;
}

/** The smallest rectangle inside `rect` with all pixels in which two images of one size differ, null if they are equal there. */
export function difference(a, b, rect) {
  const one = words(a), other = words(b), { width } = a;
  let found = null;
  for (let y = rect.top; y < rect.bottom; y++) {
    let first = y * width + rect.left, last = y * width + rect.right;
    while (first < last && one[first] === other[first]) first++;
    if (first === last) continue;
    while (one[last - 1] === other[last - 1]) last--;
    found = union(found, { left: first - y * width, top: y, right: last - y * width, bottom: y + 1 });
  }
  return found;
}

/** Whether no pixel of the image can be seen through. */
export function isOpaque(image) {
  const { data } = image;
  for (let i = 3; i < data.length; i += 4) if (data[i] !== 255) return false;
  return true;
}
