// Refining an edit in one pass of a model, as the service does it without its detectors: gleansr.retouching.refine.
import { open } from "../files.js";
import { fitted } from "./fit.js";
import { frame, recognise } from "./frame.js";
import { bounds, dilate, feathered, findEdits, mask } from "./mask.js";
import { clamped, crop, fromImage, map, planes, toImage, unsigned } from "./planes.js";
import { resize } from "./resize.js";

/** @typedef {import("./planes.js").Planes} Planes */
/** @typedef {import("./frame.js").Frame} Frame */

/**
 * Refines an edit, or says where it would be refined.
 * @param {import("./runtime.js").Runtime} runtime
 * @param {object} fields as for the service; images may be ImageData too
 * @param {(text: string) => Promise<void>} report what it throws ends the work
 * @returns {Promise<{pixels: ImageData, blob: null, model: string, note: string, summary: string, box: number[], seconds: number}>}
 */
export async function retouch(runtime, { edited, original, mask: given, model: name, strength, factor, feather, box, output }, report) {
  const [after, before, opacity] = await Promise.all([edited, original ?? edited, given].map((one) => one && pixels(one)));
  const now = fromImage(after), old = fromImage(before), size = { width: after.width, height: after.height };
  if (before.width !== size.width || before.height !== size.height) throw new Error("The edited image and the original differ in size.");
  const see = now.alpha || old.alpha, images = [now, old].map((one) => see ? withAlpha(one) : one.colour);
  const limit = opacity && mean(fromImage(opacity).colour);
  const edits = limit ? mask(size.height, size.width, Uint8Array.from(limit, (value) => Number(value > 0)))
    : original ? findEdits(...images) : mask(size.height, size.width, new Uint8Array(size.width * size.height).fill(1));
  const touched = bounds(edits), place = box ? String(box).split(",").map(Number) : null, wanted = factor ? Number(factor) : null;
  const square = () => frame(place, size, { rows: 1, columns: 1 }, touched);
  const named = runtime.list.models.find((one) => one.name === name);
  const { model, summary } = named ? { model: named, summary: name } : await recognise(runtime, old.colour, square(), touched, wanted);
  const shape = { rows: model.content_height, columns: model.output_size }, region = frame(place, size, shape, touched);
  if (region.width < model.input_size) {
    throw new Error(`The model region of ${region.width}×${region.height} pixels is smaller than the model's input of ${model.input_size}. Choose a larger one.`);
  }
  const fade = feather === null || feather === undefined ? Math.max(4, Math.floor(region.width / 32)) : Number(feather);
  const weights = weigh(edits, region, fade, Boolean(original) && !limit);
  if (limit) limit.forEach((value, i) => { weights[i] = Math.min(weights[i], value); });
  const answer = { blob: null, model: model.name, summary, note: noteOf(weights, region, shape), box: [region.left, region.top, region.width], seconds: 0 };
  if (output === "mask") return { ...answer, pixels: grey(weights, size) };
  const shown = bounds({ data: Uint8Array.from(weights, (weight) => Number(weight > 0)), ...size });
  const result = new ImageData(before.data.slice(), size.width);
  if (!shown) return { ...answer, pixels: result };
  await report("");
  const scale = wanted ?? model.scale, seen = crop(now.colour, region.left, region.top, region.width, region.height), begun = performance.now();
  // In one pass, as gleansr.retouching.refine does: a stroke's result is awaited.
  const sr = await runtime.forward(model, "low", input(seen, model, shape, scale));
  const seconds = (performance.now() - begun) / 1000;
  const refined = finish(sr, seen, model, shape, scale);
  blend(result, refined, images, weights, region, shown, Number(strength ?? 1), now.grey && old.grey);
  return { ...answer, pixels: result, seconds };
}

const pixels = (image) => image instanceof Blob ? open(image) : image;

function withAlpha({ colour, alpha }) {
  const all = planes(4, colour.height, colour.width);
  all.data.set(colour.data);
  if (alpha) all.data.set(alpha.data, colour.data.length);
  else all.data.fill(1, colour.data.length);
  return all;
}

function mean({ data, height, width }) {
  const size = height * width;
  return Float32Array.from({ length: size }, (_, i) => (data[i] + data[size + i] + data[2 * size + i]) / 3);
}

/** How much of the refined image shows in each pixel: where it was edited, within the model's region. */
function weigh(edits, region, feather, grow) {
  const { height, width } = edits, weights = new Float32Array(height * width);
  const inside = { left: Math.max(0, region.left), top: Math.max(0, region.top), right: Math.min(width, region.left + region.width), bottom: Math.min(height, region.top + region.height) };
  const touched = bounds(cut(edits, inside));
  if (!touched) return weights;
  const margin = feather + 2 + Math.floor(Math.max(height, width) / 128);  // for what is rounded up to whole cells
  const rect = {
    left: Math.max(inside.left, inside.left + touched.left - margin), top: Math.max(inside.top, inside.top + touched.top - margin),
    right: Math.min(inside.right, inside.left + touched.right + margin), bottom: Math.min(inside.bottom, inside.top + touched.bottom + margin),
  };
  const part = cut(edits, rect), grown = grow ? dilate(part, feather) : part;
  // The region's border fades too, except at the image's border: beyond it there is no refined image.
  const x = Number(rect.left === inside.left && inside.left > 0), y = Number(rect.top === inside.top && inside.top > 0);
  const right = Number(rect.right === inside.right && inside.right < width), bottom = Number(rect.bottom === inside.bottom && inside.bottom < height);
  const framed = mask(grown.height + y + bottom, grown.width + x + right);
  for (let row = 0; row < grown.height; row++) {
    framed.data.set(grown.data.subarray(row * grown.width, (row + 1) * grown.width), (row + y) * framed.width + x);
  }
  const soft = feathered(framed, feather);
  for (let row = 0; row < grown.height; row++) {
    const from = (row + y) * framed.width + x;
    weights.set(soft.subarray(from, from + grown.width), (rect.top + row) * width + rect.left);
  }
  return weights;
}

function cut({ data, width }, { left, top, right, bottom }) {
  const part = mask(bottom - top, right - left);
  for (let y = top; y < bottom; y++) part.data.set(data.subarray(y * width + left, y * width + right), (y - top) * part.width);
  return part;
}

/** What the region looks like to the model, in [-1, 1]. */
function input(seen, model, { rows, columns }, scale) {
  const coarse = scale > model.scale ? clamped(resize(seen, rows / scale, columns / scale)) : seen;
  return fitted({ colour: coarse, alpha: null, grey: false }, model, "stretch").lr;
}

/** The model's output at the region's size, back-projected to the coarse structure of the edited image. */
function finish(sr, seen, model, { rows, columns }, scale) {
  const bar = (model.output_size - rows) / 2, image = unsigned(crop(sr, 0, bar, columns, rows)), target = resize(seen, rows, columns);
  const missing = resize(resize(map(target, (value, i) => value - image.data[i]), Math.floor(rows / scale), Math.floor(columns / scale)), rows, columns);
  return resize(map(image, (value, i) => value + missing.data[i]), seen.height, seen.width);
}

/** Lays the refined image over the original, in the rectangle `shown`. */
function blend(result, refined, [edited, original], weights, region, shown, strength, isGrey) {
  const { width, height } = result, size = width * height, { left, top, right, bottom } = shown, across = right - left, down = bottom - top;
  const channels = edited.count, mixed = planes(3, down, across), alpha = channels > 3 ? planes(1, down, across) : null;
  for (let y = top, i = 0; y < bottom; y++) {
    for (let x = left; x < right; x++, i++) {
      const at = y * width + x, weight = weights[at], inner = (y - region.top) * region.width + x - region.left;
      for (let c = 0; c < channels; c++) {
        const own = original.data[c * size + at], edit = edited.data[c * size + at];
        const made = c < 3 ? edit + strength * (refined.data[c * region.width * region.height + inner] - edit) : edit;
        const value = own + weight * (made - own);
        if (c < 3) mixed.data[c * across * down + i] = value;
        else alpha.data[i] = value;
      }
    }
  }
  const patch = toImage(mixed, alpha, isGrey);
  for (let y = top, i = 0; y < bottom; y++) {
    for (let x = left; x < right; x++, i++) {
      if (weights[y * width + x] > 0) result.data.set(patch.data.subarray(4 * i, 4 * i + 4), 4 * (y * width + x));
    }
  }
}

function noteOf(weights, region, { columns }) {
  const share = weights.reduce((sum, weight) => sum + Number(weight > 0), 0) / weights.length;
  if (!share) return "no edits found";
  const notes = [share < 1 ? `${(100 * share).toFixed(1)}% of the image refined` : "the whole image refined"];
  if (region.width > columns) notes.push(`the model's ${columns} pixels were enlarged to the region's ${region.width}`);
  return notes.join("; ");
}

function grey(weights, { width, height }) {
  const image = new ImageData(width, height);
  weights.forEach((weight, i) => { image.data.fill(Math.round(weight * 255), 4 * i, 4 * i + 3); });
  for (let i = 3; i < image.data.length; i += 4) image.data[i] = 255;
  return image;
}
