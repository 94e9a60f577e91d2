// Fits images to a model's input, and takes the image out of the model's output: gleansr.inference.upscaler.
import { clamped, crop, planes, round, signed, toImage } from "./planes.js";
import { resize } from "./resize.js";

/** @typedef {import("./planes.js").Planes} Planes */

/**
 * An entry of the list of models.
 * @typedef {object} Model
 * @property {string} name
 * @property {string} category
 * @property {number} scale
 * @property {number} input_size
 * @property {number} output_size
 * @property {number} content_height rows of the image in the square output; less than `output_size` if it has black bars
 * @property {"repeat"|"black"} border what fills the rest of an input
 * @property {boolean} self_ensemble whether an enlarged image is the mean of two passes
 */

/**
 * An image fitted to a model.
 * @typedef {object} Fitted
 * @property {Planes} lr the model's input, RGB in [-1, 1]
 * @property {Planes|null} alpha of the input
 * @property {{left: number, top: number, width: number, height: number}} keep where the image lies in the model's output
 * @property {number[]} padding pixels of the image by which it was padded: left, right, top and bottom
 * @property {string} note how the image was fitted, "" if it was not
 */

/** Rows of the image in a model's input. */
const rowsOf = (model) => model.content_height / model.scale;

/** Pixels of an image per pixel of the model's input, once the image is padded to the model's shape. */
export const shrinkage = (model, { width, height }) => Math.max(width / model.input_size, height / rowsOf(model));

/**
 * @param {import("./planes.js").ImagePlanes} picture
 * @param {Model} model
 * @param {"pad"|"crop"|"stretch"|"exact"} fit
 * @returns {Fitted}
 */
export function fitted({ colour, alpha }, model, fit) {
  const { width, height } = colour, { input_size: size, output_size: out } = model, rows = rowsOf(model), steps = [];
  const bars = height === size && width === size;  // a square of the model's size has its bars already
  let cut = { left: 0, top: 0, width, height }, padding = [0, 0, 0, 0], kept = { left: 0, top: 0, width: 1, height: 1 };
  if (!bars && (height !== rows || width !== size)) {
    if (fit === "exact") throw new Error(`The image is ${width}×${height}, but the model takes ${size}×${rows}. Choose another fit.`);
    const wide = width * rows > height * size;
    let full = wide ? { width, height: round(width * rows / size) } : { width: round(height * size / rows), height };
    if (full.width !== width || full.height !== height) {
      if (fit === "crop") {
        full = wide ? { width: round(height * size / rows), height } : { width, height: round(width * rows / size) };
        cut = { left: Math.floor((width - full.width) / 2), top: Math.floor((height - full.height) / 2), ...full };
        steps.push(`cut to its centre ${full.width}x${full.height}`);
      } else if (fit === "stretch") {
        steps.push("aspect ratio not kept");
        full = { width, height };
      } else {
        const x = Math.floor((full.width - width) / 2), y = Math.floor((full.height - height) / 2);
        padding = [x, full.width - width - x, y, full.height - height - y];
        cut = { left: -x, top: -y, ...full };
        kept = { left: x / full.width, top: y / full.height, width: width / full.width, height: height / full.height };
        steps.push(`padded to ${full.width}x${full.height}`);
      }
    }
    if (full.height !== rows || full.width !== size) {
      const verb = full.width > size ? "shrunk" : full.width < size ? "enlarged" : "resized";
      steps.push(`${verb} to the model's ${size}x${rows}`);
    }
  }
  const take = (from) => {
    const part = crop(from, cut.left, cut.top, cut.width, cut.height), down = bars ? size : rows;
    return part.height === down && part.width === size ? part : clamped(resize(part, down, size));
  };
  const content = bars ? out : model.content_height, bar = (out - content) / 2;
  const left = round(kept.left * out), top = bar + round(kept.top * content);
  const keep = {
    left, top, width: Math.max(1, round((kept.left + kept.width) * out) - left),
    height: Math.max(1, bar + round((kept.top + kept.height) * content) - top),
  };
  return {
    lr: signed(square(take(colour), model)), alpha: alpha && square(take(alpha), model), keep, padding,
    note: steps.length ? `${width}x${height}: ${steps.join(", ")}` : "",
  };
}

/** Content between the bars of a model that has them. */
function square(content, { input_size: size, border }) {
  if (content.height === size) return content;
  const first = Math.floor((size - content.height) / 2), framed = crop(content, 0, -first, size, size);
  if (border === "black") {
    for (let c = 0; c < framed.count; c++) {
      framed.data.fill(0, c * size * size, (c * size + first) * size);
      framed.data.fill(0, (c * size + first + content.height) * size, (c + 1) * size * size);
    }
  }
  return framed;
}

/**
 * The image in a model's output.
 * @param {Fitted} fit
 * @param {Planes} sr RGB in [0, 1]
 * @returns {ImageData}
 */
export function finished({ alpha, keep }, sr, grey) {
  const cut = (from) => crop(from, keep.left, keep.top, keep.width, keep.height);
  return toImage(cut(sr), alpha && cut(clamped(resize(alpha, sr.height, sr.width))), grey);
}

/** The same, but exactly `scale` times as large as the image was; it was padded or resized as a whole. */
export function finishedExactly({ alpha, padding: [left, right, top, bottom] }, sr, { width, height }, model, scale, grey) {
  const exact = (from, density) => {
    const rows = rowsOf(model) * density, content = crop(from, 0, (from.height - rows) / 2, from.width, rows);
    const whole = resize(content, scale * (height + top + bottom), scale * (width + left + right));
    return clamped(crop(whole, scale * left, scale * top, scale * width, scale * height));
  };
  return toImage(exact(sr, model.scale), alpha && exact(alpha, 1), grey);
}

/** A network's output as planes. */
export const asPlanes = ({ data, dims }) => planes(dims[1], dims[2], dims[3], data);
