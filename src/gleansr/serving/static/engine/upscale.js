// Enlarging, as the service does it: gleansr.photos.auto.
import { open } from "../files.js";
import { png } from "../png.js";
import { enlarge } from "./background.js";
import { classify, NOUNS, percent } from "./classify.js";
import { finished, finishedExactly, fitted, shrinkage } from "./fit.js";
import { content, detected, modelFor, search, summary } from "./heads.js";
import { octaves, paste, resolved } from "./paste.js";
import { fromImage, signed, unsigned } from "./planes.js";
import { bestModel, LARGEST, thumbnailSize } from "./router.js";

/** @typedef {import("./fit.js").Model} Model */
/** @typedef {import("./heads.js").Square & {category: string, model: string|null, marked: boolean}} TreatedHead
 *   model: null if it has more pixels than the models take; marked: by hand */

const LEAST = 4;  // longer side in pixels from which an image is recognised
const SEARCHED = 24;  // from which heads are looked for
const FILLS = 0.75;  // smallest square of a head that fills a thumbnail, as a share of the shorter side
const MAX_SHRINKAGE = 1.5;  // up to so many pixels per pixel of the model's input, a thumbnail is simply shrunk for the model
const MAX_PIXELS = 32e6;  // of a result at the default scale
const MOST_PIXELS = 80e6;  // of any
const MOST_MODELS = 3;  // of the heads of one photo: each is a download of 5 MB
const KEPT_PIXELS = 24e6;  // of an enlarged background that is kept, so that heads are marked without waiting for it again

let kept = null;  // the last background: {key, scale, image}

/**
 * Enlarges an image.
 * @param {import("./runtime.js").Runtime} runtime
 * @param {{image: Blob, model: string, fit: string, scale: string|null, heads?: TreatedHead[]|null, key?: string}} fields as for the service;
 *   heads: those to be enlarged by models of heads, instead of a search; key: of the image
 * @param {(text: string) => Promise<void>} report is told what is done; what it throws ends the work
 */
export async function upscale(runtime, { image: file, model: name, fit, scale, heads = null, key = "" }, report) {
  const picture = fromImage(await open(file)), wanted = scale ? Number(scale) : null, begun = performance.now();
  const plan = heads ? { ...REST, heads, summary: summary(heads, []) } : name === "auto" ? await automatic(runtime, picture, report)
    : named(runtime.list.models.find((one) => one.name === name), picture, fit, wanted);
  const made = plan.model ? await whole(runtime, picture, plan, wanted) : await photo(runtime, picture, wanted, plan.heads, key, report);
  const model = plan.model?.name ?? [...new Set([...made.models, runtime.list.general.name])].join(", ");
  const seconds = (performance.now() - begun) / 1000, notes = [...plan.notes, ...made.notes], said = [plan.summary, model].filter(Boolean).join(", ");
  await report("Writing the file…");
  return { blob: await png(made.image, `gleansr, model ${model}`), model, summary: said, note: notes.join("; "), box: null, seconds, heads: made.heads };
}

/**
 * What is done with an image: the model that enlarges it as a whole, or null for the general one.
 * @typedef {{model: Model|null, fit: string, exact: boolean, summary: string, notes: string[], heads: object[]}} Plan
 *   exact: whether the result is exactly so many times as large as the image; heads: in it, that have models of their own
 */
const REST = { model: null, fit: "pad", exact: true, summary: "", notes: [], heads: [] };

/** @returns {Promise<Plan>} by what the image shows */
async function automatic(runtime, picture, report) {
  const { models } = runtime.list, { colour } = picture, longer = Math.max(colour.width, colour.height), sought = detected(runtime.list);
  const photograph = async () => {
    const heads = await search(runtime, picture, report);
    return { ...REST, heads, summary: summary(heads, sought) };
  };
  if (longer > thumbnailSize(models)) return photograph();
  const category = longer < LEAST ? { name: "other", confidence: 1 } : await classify(runtime, picture);
  const model = bestModel(models, category.name, longer);
  if (model && longer > LARGEST * model.input_size) return photograph();
  const heads = longer < SEARCHED || category.name === "cats" ? []
    : await search(runtime, picture, report, sought.filter((one) => !sought.includes(category.name) || one === category.name));
  const fills = heads.length === 1 && heads[0].category === category.name && heads[0].width >= FILLS * Math.min(colour.width, colour.height);
  if (heads.length && !fills) return { ...REST, heads, summary: summary(heads, sought) };
  const known = category.name in NOUNS, said = recognised(category);
  if (!model) return { ...REST, summary: said, notes: known ? [`this page has no model of ${category.name}`] : [] };
  if (shrinkage(model, colour) <= MAX_SHRINKAGE) return { ...REST, model, summary: said };
  return { ...REST, summary: said, notes: [`larger than what ${model.name} sees; choose it to have its detail nevertheless`] };
}

/** @param {import("./classify.js").Category} category */
function recognised({ name, confidence, guess }) {
  if (name in NOUNS) return `${NOUNS[name]} (${percent(confidence)})`;
  return guess ? `unsure, perhaps a ${NOUNS[guess]}` : "nothing recognised";
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
  return { ...REST, model, fit: fit === "auto" ? "pad" : fit, exact, notes };
}

async function whole(runtime, picture, { model, fit, exact }, scale) {
  const { colour, grey } = picture, fitting = fitted(picture, model, fit), wanted = scale ?? model.scale;
  const sr = unsigned(await runtime.enlarge(model, fitting.lr));
  if (exact && (wanted !== model.scale || shrinkage(model, colour) !== 1)) {
    return { image: finishedExactly(fitting, sr, colour, model, wanted, grey), notes: [], heads: null };
  }
  return { image: finished(fitting, sr, grey), notes: fitting.note ? [fitting.note] : [], heads: null };
}

async function photo(runtime, picture, wanted, heads, key, report) {
  const { general } = runtime.list, { width, height } = picture.colour, pixels = (by) => width * height * by ** 2, notes = [];
  if (!general) throw new Error("This page has no model for images of any kind. Choose one of a category.");
  let scale = wanted ?? general.scale;
  if (wanted && pixels(wanted) > MOST_PIXELS) throw new Error(`${wanted}× of ${width}×${height} pixels is more than a browser holds. Choose a lower scale.`);
  while (!wanted && scale > 2 && pixels(scale) > MAX_PIXELS) scale /= 2;
  if (pixels(scale) > MOST_PIXELS) throw new Error(`${width}×${height} pixels are more than a browser can enlarge. Shrink the image, or use gleansr upscale.`);
  if (!wanted && scale !== general.scale) notes.push(`enlarged ${scale}x, as ${general.scale}x would exceed ${MAX_PIXELS / 1e6} megapixels`);
  const { treated, patches, models } = await enlargedHeads(runtime, picture, heads, report), large = treated.filter(({ model }) => !model).length;
  if (large) notes.push(`${large} of ${treated.length} enlarged like the rest: more pixels than the models take`);
  const sharp = patches.filter(({ resolved: own }) => own).length;
  if (sharp) notes.push(`${sharp} of ${patches.length} keep detail of the photo that the model does not see`);
  const image = await background(runtime, picture, scale, key, (percent) => report(`Background, ${percent} %…`));
  paste(image, scale, patches, picture.grey);
  return { image, notes, models, heads: treated };
}

/** The heads with the outputs of their models, and the names of these. */
async function enlargedHeads(runtime, { colour }, heads, report) {
  const treated = [], patches = [], models = modelsFor(runtime.list.models, heads);
  for (const [i, { category, left, top, width, marked = false }] of heads.entries()) {
    const square = { left, top, width }, model = models[i];
    treated.push({ ...square, category, marked, model: model?.name ?? null });
    if (!model) continue;
    await report(`${NOUNS[category][0].toUpperCase()}${NOUNS[category].slice(1)} ${treated.length} of ${heads.length}…`);
    const lr = signed(content(colour, square, model.input_size)), own = octaves(colour, square, model.input_size);
    const sr = await runtime.enlarge(model, lr);
    patches.push({ square, lr, sr, resolved: resolved(own, sr, square) });
  }
  return { treated, patches, models: treated.map(({ model }) => model).filter(Boolean) };
}

/** The model of each head; null if it has more pixels than the models take, unless it was marked. */
function modelsFor(models, heads) {
  const best = heads.map((head) => head.marked ? bestModel(models, head.category, head.width) : modelFor(models, head)), uses = new Map();
  for (const model of best) if (model) uses.set(model, (uses.get(model) ?? 0) + 1);
  const byUse = [...uses.keys()].sort((a, b) => uses.get(b) - uses.get(a)), first = byUse.filter((model, i) => byUse.findIndex(({ category }) => category === model.category) === i);
  const chosen = [...new Set([...first, ...byUse])].slice(0, MOST_MODELS);
  return best.map((model, i) => model && (chosen.includes(model) ? model : bestModel(chosen, model.category, heads[i].width)));
}

/** The photo enlarged by the general model: the last one again, if it is the same. */
async function background(runtime, picture, scale, key, report) {
  if (!kept || !key || kept.key !== key || kept.scale !== scale) {
    kept = null;
    await report(0);
    const image = await enlarge(runtime, picture, scale, (done, all) => all > 1 && report(Math.round(100 * done / all)));
    if (image.width * image.height > KEPT_PIXELS) return image;
    kept = { key, scale, image };
  }
  return new ImageData(kept.image.data.slice(), kept.image.width);
}
