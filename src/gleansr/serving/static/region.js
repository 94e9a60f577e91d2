// What the model sees of an image: which part by itself, and how a part is chosen by hand.
import { whole } from "./pixels.js";

const PADDED = 1.2;  // how much more than the whole image the model may see, in pixels: the border is then repeated
const MARGIN = 0.15;  // of the part's size, between what was touched and the border where possible

/** @typedef {{width: number, height: number, ratio: number, least: number}} Limits
 *   of the image; ratio: height over width of what the model sees, 1 for most; least: the smallest width */

/** The part of that width, or of the widest and narrowest that are possible, as close to that place as the image allows. */
export function place({ width, height, ratio, least }, wanted) {
  const across = Math.round(Math.min(Math.max(wanted.width, least), width, height / ratio)), down = Math.min(Math.round(across * ratio), height);
  const left = Math.round(Math.min(Math.max(wanted.left, 0), width - across)), top = Math.round(Math.min(Math.max(wanted.top, 0), height - down));
  return { left, top, right: left + across, bottom: top + down };
}

/** The largest part, as close to the image's middle as it can be with `touched` in it and some way from its border. */
export function largest(limits, touched = null) {
  const width = Math.min(limits.width, limits.height / limits.ratio), height = width * limits.ratio;
  const left = (limits.width - width) / 2, top = (limits.height - height) / 2;
  if (!touched) return place(limits, { left, top, width });
  const within = (start, size, low, high) => {
    const margin = Math.max(0, Math.min(size * MARGIN, (size - high + low) / 2));
    return Math.min(Math.max(start, high + margin - size), low - margin);
  };
  return place(limits, { left: within(left, width, touched.left, touched.right), top: within(top, height, touched.top, touched.bottom), width });
}

/** What the model sees if nothing else is chosen: all of an image of about its shape, else the largest part around what was touched. */
export function automatic(limits, touched) {
  const { width, height, ratio } = limits, all = Math.max(width, height / ratio) ** 2 * ratio, part = largest(limits, touched);
  return all <= PADDED * width * height || touched && !holds(part, touched) ? whole(limits) : part;
}

/** Whether one rectangle holds the other. */
export function holds(rect, other) {
  return rect.left <= other.left && rect.top <= other.top && rect.right >= other.right && rect.bottom >= other.bottom;
}

/** What of a rectangle is at a point: a corner ("left top", ...), "inside", or null; `near` is how far off a corner may be hit. */
export function hit({ left, top, right, bottom }, { x, y }, near) {
  const across = Math.abs(x - left) <= near ? "left" : Math.abs(x - right) <= near ? "right" : null;
  const down = Math.abs(y - top) <= near ? "top" : Math.abs(y - bottom) <= near ? "bottom" : null;
  if (across && down) return `${across} ${down}`;
  return x > left && x < right && y > top && y < bottom ? "inside" : null;
}

/** The part after what was hit of it was dragged from one point to another; null: a new one is drawn between the points. */
export function drag(limits, start, part, from, to) {
  if (part === "inside") {
    return place(limits, { left: start.left + to.x - from.x, top: start.top + to.y - from.y, width: start.right - start.left });
  }
  const { ratio, least } = limits, leftwards = part ? part.includes("left") : to.x < from.x, upwards = part ? part.includes("top") : to.y < from.y;
  // The corner opposite to the one that moves stays where it is.
  const x = part ? (leftwards ? start.right : start.left) : from.x, y = part ? (upwards ? start.bottom : start.top) : from.y;
  const room = Math.min(leftwards ? x : limits.width - x, (upwards ? y : limits.height - y) / ratio);
  const width = Math.min(Math.max(Math.abs(to.x - x), Math.abs(to.y - y) / ratio, least), room);
  return place(limits, { left: leftwards ? x - width : x, top: upwards ? y - width * ratio : y, width });
}
