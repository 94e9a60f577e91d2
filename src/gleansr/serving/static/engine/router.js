// Which model an image gets: gleansr.inference.router.

/** @typedef {import("./fit.js").Model} Model */

const BIAS = 1 / 3;  // octaves by which larger inputs are preferred, up to UNBIASED px
const UNBIASED = 32;

/** An image is a thumbnail, enlarged as a whole, up to so many times a model's input size. */
export const LARGEST = 2;

/** The longer side up to which an image is taken for a thumbnail. */
export const thumbnailSize = (models) => LARGEST * Math.max(0, ...models.map((model) => model.input_size));

/**
 * The model of a category whose input is nearest to so many pixels, as a ratio.
 * @param {Model[]} models
 * @param {string} category
 * @param {number} pixels
 * @returns {Model|null} null if the category has none
 */
export function bestModel(models, category, pixels) {
  const distance = ({ input_size: size }) => Math.abs(Math.log2(pixels / size) + (size <= UNBIASED ? BIAS : 0));
  const fitting = models.filter((model) => model.category === category).sort((a, b) => b.input_size - a.input_size);
  return fitting.reduce((best, model) => !best || distance(model) < distance(best) ? model : best, null);
}
