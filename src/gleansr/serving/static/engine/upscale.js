// Enlarging, as the service does it without its detectors: gleansr.photos.auto.
import { open } from "../files.js";
import { png } from "../png.js";
import { enlarge } from "./background.js";
import { classify, NOUNS } from "./classify.js";
import { finished, finishedExactly, fitted, shrinkage } from "./fit.js";
import { fromImage, unsigned } from "./planes.js";
import { bestModel, LARGEST, thumbnailSize } from "./router.js";

/** @typedef {import("./fit.js").Model} Model */

const LEAST = 4;  // longer side in pixels from which an image is recognised
const MAX_SHRINKAGE = 1.5;  // up to so many pixels per pixel of the model's input, a thumbnail is simply shrunk for the model
const MAX_PIXELS = 32e6;  // of a result at the default scale
const MOST_PIXELS = 80e6;  // of any
const UNSEEN = "no face or cat is looked for in larger images here; cut one out, or choose its model";

/**
 * Enlarges an image.
 * @param {import("./runtime.js").Runtime} runtime
 * @param {{image: Blob, model: string, fit: string, scale: string|null}} fields as for the service
 * @param {(text: string) => Promise<void>} report is told what is done; what it throws ends the work
 */
export async function upscale(runtime, { image: file, model: name, fit, scale }, report) {
  const picture = fromImage(await open(file)), wanted = scale ? Number(scale) : null, begun = performance.now();
  const plan = name === "auto" ? await automatic(runtime, picture) : named(runtime.list.models.find((one) => one.name === name), picture, fit, wanted);
  const made = plan.model ? await whole(runtime, picture, plan, wanted) : await photo(runtime, picture, wanted, report);
  const model = plan.model?.name ?? runtime.list.general.name, seconds = (performance.now() - begun) / 1000;
  const notes = [...plan.notes, ...made.notes], summary = [plan.summary, model].filter(Boolean).join(", ");
  await report("Writing the file…");
  return { blob: await png(made.image, `gleansr, model ${model}`), model, summary, note: notes.join("; "), box: null, seconds };
}

/**
 * What is done with an image: the model that enlarges it as a whole, or null for the general one.
 * @typedef {{model: Model|null, fit: string, exact: boolean, summary: string, notes: string[]}} Plan
 *   exact: whether the result is exactly so many times as large as the image
 */

/** @returns {Promise<Plan>} by what the image shows */
async function automatic(runtime, picture) {
  const { models } = runtime.list, { colour } = picture, longer = Math.max(colour.width, colour.height);
  const rest = { model: null, fit: "pad", exact: true, summary: "", notes: [] };
  if (longer > thumbnailSize(models)) return { ...rest, notes: [UNSEEN] };
  const category = longer < LEAST ? { name: "other", confidence: 1 } : await classify(runtime, picture);
  const known = category.name in NOUNS, summary = known ? `${NOUNS[category.name]} (${Math.round(100 * category.confidence)}%)` : "nothing recognised";
  const model = bestModel(models, category.name, longer);
  if (!model) return { ...rest, summary, notes: known ? [`this page has no model of ${category.name}`] : [] };
  if (longer > LARGEST * model.input_size) return { ...rest, notes: [UNSEEN] };
  if (shrinkage(model, colour) <= MAX_SHRINKAGE) return { ...rest, model, summary };
  return { ...rest, summary, notes: [`larger than what ${model.name} sees; choose it to have its detail nevertheless`] };
}

/** @returns {Plan} by the chosen model, which takes the image for one object of its category */
function named(model, { colour }, fit, scale) {
  const notes = [], makes = Math.max(model.output_size, model.content_height);
  if (Math.max(colour.width, colour.height) > makes && fit !== "crop") {
    throw new Error(`${colour.width}×${colour.height} is larger than what ${model.name} makes, ${model.output_size}×${model.content_height}. `
      + "Choose the automatic model, or cut out the part that it is to enlarge.");
  }
  if (fit !== "auto" && scale && scale !== model.scale) {
    throw new Error(`With this fit ${model.name} enlarges ${model.scale} times, not ${scale}. Choose the whole image, or the automatic scale.`);
  }
  const exact = fit === "auto" && (Boolean(scale) || shrinkage(model, colour) <= MAX_SHRINKAGE);
  return { model, fit: fit === "auto" ? "pad" : fit, exact, summary: "", notes };
}

async function whole(runtime, picture, { model, fit, exact }, scale) {
  const { colour, grey } = picture, fitting = fitted(picture, model, fit), wanted = scale ?? model.scale;
  const sr = unsigned(await runtime.forward(model, "low", fitting.lr));
  if (exact && (wanted !== model.scale || shrinkage(model, colour) !== 1)) {
    return { image: finishedExactly(fitting, sr, colour, model, wanted, grey), notes: [] };
  }
  return { image: finished(fitting, sr, grey), notes: fitting.note ? [fitting.note] : [] };
}

async function photo(runtime, picture, wanted, report) {
  const { general } = runtime.list, { width, height } = picture.colour, pixels = (by) => width * height * by ** 2, notes = [];
  if (!general) throw new Error("This page has no model for images of any kind. Choose one of a category.");
  let scale = wanted ?? general.scale;
  if (wanted && pixels(wanted) > MOST_PIXELS) throw new Error(`${wanted}× of ${width}×${height} pixels is more than a browser holds. Choose a lower scale.`);
  while (!wanted && scale > 2 && pixels(scale) > MAX_PIXELS) scale /= 2;
  if (pixels(scale) > MOST_PIXELS) throw new Error(`${width}×${height} pixels are more than a browser can enlarge. Shrink the image, or use gleansr upscale.`);
  if (!wanted && scale !== general.scale) notes.push(`enlarged ${scale}x, as ${general.scale}x would exceed ${MAX_PIXELS / 1e6} megapixels`);
  const image = await enlarge(runtime, picture, scale, (done, all) => report(all > 1 ? `Enlarging… ${done} of ${all} parts` : ""));
  return { image, notes };
}
