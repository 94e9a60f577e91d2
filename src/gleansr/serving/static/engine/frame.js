// The part of an image that a model sees when it refines an edit, and what is recognised in it: gleansr.retouching.region.
import { mostProbable, NOUNS, percent, probabilities } from "./classify.js";
import { clamp, crop, round } from "./planes.js";
import { bestModel } from "./router.js";

/** @typedef {import("../pixels.js").Rect} Rect */
/** @typedef {{left: number, top: number, width: number, height: number}} Frame  may extend beyond the image, whose border is then repeated */

const USUAL_SCALE = 4;  // of the model that is chosen, if there is one of that scale
const SIZE = 256;  // of the models' output
const RECOGNISED = 0.15;  // least probability of a category
const VIEWS = [0.75, 0.55];  // sides of smaller views, as shares of the frame's: the classifier knows heads that fill an image
const UNFIT = "urn:gleansr:unfit";  // a problem's type, as the service names it

/**
 * @param {number[]|null} box left, top and width that were chosen
 * @param {{width: number, height: number}} image
 * @param {{rows: number, columns: number}} shape of what the model sees
 * @param {Rect|null} edits
 * @returns {Frame}
 */
export function frame(box, { width, height }, { rows, columns }, edits) {
  if (box) return { left: box[0], top: box[1], width: box[2], height: round(box[2] * rows / columns) };
  const centred = (across) => {
    const down = round(across * rows / columns);
    return { left: Math.floor((width - across) / 2), top: Math.floor((height - down) / 2), width: across, height: down };
  };
  const across = round(height * columns / rows), all = centred(Math.max(width, across)), part = centred(Math.min(width, across));
  const { left, top, right, bottom } = edits ?? { left: 0, top: 0, right: width, bottom: height };
  if (right - left > part.width || bottom - top > part.height || all.width * all.height <= 1.2 * width * height) return all;
  return {
    ...part, left: Math.min(Math.max(part.left, right - part.width), left), top: Math.min(Math.max(part.top, bottom - part.height), top),
  };
}

/**
 * The model for what a square frame shows: a retouch is of something that a model is for, so that the most probable category counts.
 * @param {import("./runtime.js").Runtime} runtime
 * @param {import("./planes.js").Planes} image the original, RGB in [0, 1]
 * @param {Frame} square
 * @param {Rect|null} edits
 * @param {number|null} scale
 * @returns {Promise<{model: import("./fit.js").Model, summary: string}>}
 */
export async function recognise(runtime, image, square, edits, scale) {
  const { models } = runtime.list, names = Object.keys(NOUNS).filter((name) => models.some(({ category }) => category === name));
  let best = null;
  for (const { left, top, width, height } of views(square, edits)) {
    const view = mostProbable(await probabilities(runtime, { colour: crop(image, left, top, width, height), alpha: null }), names);
    if (!best || view.confidence > best.confidence) best = view;
  }
  if (best.confidence < RECOGNISED) {
    throw Object.assign(new Error("Nothing is recognised in the part that the model sees. Choose a model, or a model region."), { type: UNFIT });
  }
  const model = bestModel(models, best.name, SIZE / (scale ?? USUAL_SCALE)), unsure = best.confidence < 0.5 ? ", unsure" : "";
  return { model, summary: `${NOUNS[best.name]} (${percent(best.confidence)}${unsure}), ${model.name}` };
}

/** Squares in which the object may be, from the whole frame to the smallest: at its centre, above it, and around the edits. */
function views(square, edits) {
  const { left, top, right, bottom } = edits ?? { left: square.left, top: square.top, right: square.left + square.width, bottom: square.top + square.width };
  const found = [square];
  for (const share of VIEWS) {
    const side = Math.max(1, round(share * square.width)), spare = square.width - side, middle = Math.floor(spare / 2);
    const around = [Math.floor((left + right - side) / 2) - square.left, Math.floor((top + bottom - side) / 2) - square.top].map((at) => clamp(at, 0, spare));
    const places = new Map([[middle, middle], [middle, Math.floor(spare / 4)], around].map((place) => [place.join(), place]));
    for (const [x, y] of places.values()) found.push({ left: square.left + x, top: square.top + y, width: side, height: side });
  }
  return found;
}
