// Where an image lies in a frame, and how zooming and panning move it. Both are measured in the same pixels, of the screen or of CSS.
const MOST = 32;  // pixels of the frame an image pixel at most
const REST = 48;  // pixels of the image that stay in sight

/** @typedef {{width: number, height: number}} Size */
/** @typedef {{scale: number, x: number, y: number}} Place  of the image's top left corner, and how many times it is enlarged */

const whole = (image, frame, margin = 0) => Math.min((frame.width - 2 * margin) / image.width, (frame.height - 2 * margin) / image.height, MOST);

/** In the middle with that scale. */
const centred = (image, frame, scale) => ({ scale, x: (frame.width - image.width * scale) / 2, y: (frame.height - image.height * scale) / 2 });

/** The whole image as large as it can be, with a margin. @returns {Place} */
export const fitted = (image, frame, margin) => centred(image, frame, whole(image, frame, margin));

/** A rectangle of the image as large as it can be. @returns {Place} */
export function shown({ left, top, right, bottom }, image, frame) {
  const scale = whole({ width: right - left, height: bottom - top }, frame), middle = centred({ width: left + right, height: top + bottom }, frame, scale);
  return panned(middle, 0, 0, image, frame);
}

/** Zoomed around a point of the frame, by default its middle. @returns {Place} */
export function zoomed({ scale: before, x, y }, factor, image, frame, at = { x: frame.width / 2, y: frame.height / 2 }) {
  const scale = Math.min(Math.max(before * factor, whole(image, frame) / 2), MOST), by = scale / before;
  return panned({ scale, x: at.x - (at.x - x) * by, y: at.y - (at.y - y) * by }, 0, 0, image, frame);
}

/** Moved, as long as some of the image stays in sight. @returns {Place} */
export function panned({ scale, x, y }, dx, dy, image, frame) {
  const kept = (at, length, room) => Math.min(Math.max(at, REST - length * scale), room - REST);
  return { scale, x: kept(x + dx, image.width, frame.width), y: kept(y + dy, image.height, frame.height) };
}
