// Images as planes of floats, the form in which networks and resizing take them, and the whole numbers of Python's `round`.

/**
 * Planes of an image: value (c, y, x) is data[(c * height + y) * width + x].
 * @typedef {{data: Float32Array, count: number, height: number, width: number}} Planes
 */

/**
 * An image in planes.
 * @typedef {{colour: Planes, alpha: Planes|null, grey: boolean}} ImagePlanes
 *   colour: RGB in [0, 1], multiplied with alpha; alpha: null if the image is opaque; grey: whether all that can be seen of it is
 */

/** @returns {Planes} */
export const planes = (count, height, width, data = new Float32Array(count * height * width)) => ({ data, count, height, width });

/** To the nearest whole number, halves to the even one. */
export function round(value) {
  const below = Math.floor(value), rest = value - below;
  return rest < 0.5 || rest === 0.5 && below % 2 === 0 ? below : below + 1;
}

/** @param {ImageData} image @returns {ImagePlanes} */
export function fromImage({ data, width, height }) {
  const size = width * height, colour = planes(3, height, width), opacity = planes(1, height, width);
  let opaque = true, grey = true;
  for (let i = 0, at = 0; i < size; i++, at += 4) {
    const alpha = data[at + 3] / 255;
    opaque &&= data[at + 3] === 255;
    grey &&= !data[at + 3] || data[at] === data[at + 1] && data[at + 1] === data[at + 2];
    opacity.data[i] = alpha;
    for (let c = 0; c < 3; c++) colour.data[c * size + i] = Math.fround(data[at + c] / 255) * alpha;
  }
  return { colour, alpha: opaque ? null : opacity, grey };
}

/**
 * An image of 8 bits, as the service rounds it.
 * @param {Planes} colour in [0, 1], multiplied with alpha if there is one
 * @param {Planes|null} alpha
 * @param {boolean} grey whether red, green and blue become equal
 */
export function toImage(colour, alpha = null, grey = false) {
  const { width, height, data } = colour, image = new ImageData(width, height);
  write(image, colour, alpha, 0, grey);
  return image;
}

/** Writes planes into the rows of an image of their width, from row `top` on; as `toImage`. */
export function write(image, { data, width, height }, alpha, top, grey) {
  const size = width * height, bytes = image.data, byte = (value) => value <= 0 ? 0 : value >= 1 ? 255 : even(Math.fround(value * 255));
  for (let i = 0, at = top * width * 4; i < size; i++, at += 4) {
    const opacity = alpha ? alpha.data[i] : 1, visible = opacity > 0.5 / 255;
    for (let c = 0; c < 3; c++) bytes[at + c] = visible ? byte(data[c * size + i] / opacity) : 0;
    bytes[at + 3] = alpha ? byte(opacity) : 255;
    if (grey) bytes.fill((bytes[at] * 19595 + bytes[at + 1] * 38470 + bytes[at + 2] * 7471 + 0x8000) >> 16, at, at + 3);
  }
}

/** `round` for numbers from 0 to 255. */
function even(value) {
  const below = value | 0, rest = value - below;
  return rest > 0.5 || rest === 0.5 && below & 1 ? below + 1 : below;
}

/**
 * The part of planes in a rectangle, which may extend beyond them: their border is then repeated, or they are mirrored.
 * @param {Planes} from
 * @returns {Planes}
 */
export function crop(from, left, top, width, height, mirrored = false) {
  const part = planes(from.count, height, width), index = mirrored ? mirror : (at, length) => clamp(at, 0, length - 1);
  for (let c = 0, to = 0; c < from.count; c++) {
    for (let y = top; y < top + height; y++, to += width) {
      const row = (c * from.height + index(y, from.height)) * from.width;
      if (left >= 0 && left + width <= from.width) part.data.set(from.data.subarray(row + left, row + left + width), to);
      else for (let x = 0; x < width; x++) part.data[to + x] = from.data[row + index(left + x, from.width)];
    }
  }
  return part;
}

/** An index of an axis that is mirrored beyond its ends, with the end pixels doubled. */
function mirror(at, length) {
  const wrapped = (at % (2 * length) + 2 * length) % (2 * length);
  return Math.min(wrapped, 2 * length - 1 - wrapped);
}

export const clamp = (value, low, high) => value < low ? low : value > high ? high : value;

/** Planes with a function applied to each value. */
export function map(from, change) {
  const { data } = from, out = planes(from.count, from.height, from.width);
  for (let i = 0; i < data.length; i++) out.data[i] = change(data[i], i);
  return out;
}

/** The mirror image: left and right exchanged. */
export const mirrored = (from) => map(from, (_, i) => from.data[i + from.width - 1 - 2 * (i % from.width)]);

/** The planes with all values between 0 and 1. */
export const clamped = (from) => map(from, (value) => clamp(value, 0, 1));

/** From [0, 1] to [-1, 1], as networks take images, and back, clamped. */
export const signed = (from) => map(from, (value) => value * 2 - 1);
export const unsigned = (from) => map(from, (value) => (clamp(value, -1, 1) + 1) / 2);
