// The image that is edited: as it was opened, what results start from, and what the strokes made of it.
import { clip, copy, difference, union, whole, words } from "./pixels.js";
import { changes, History } from "./history.js";
import { begin } from "./tools.js";

const CELL = 256;

/** An image with its edits. All are ImageData of its size. */
export class Document {
  /**
   * @param {ImageData} opened
   * @param {string} name of its file, without suffix
   */
  constructor(opened, name) {
    Object.assign(this, { name, width: opened.width, height: opened.height, opened });
    const twin = () => new ImageData(opened.data.slice(), opened.width);
    this.base = opened;  // what the model's detail is laid on: as opened, until a result is kept
    this.version = 0;  // changes with the base
    this.kept = 0;  // results that are in the base
    this.edited = twin();
    this.before = twin();  // equals `edited` between strokes
    this.history = new History();
    this.columns = Math.ceil(opened.width / CELL);
    this.cells = new Set();  // in which `edited` may differ from `base`
    this.stroke = null;
  }

  /** Starts a stroke; see `begin` in tools.js for what it is told. */
  begin(tool, brush) {
    this.stroke = { label: tool, touched: null, brush: begin(tool, this, brush) };
    return this.stroke.brush;
  }

  /** Writes what the stroke did since the last time. Returns the rectangle that changed, or null. */
  render() {
    const rect = this.stroke.brush.render();
    this.stroke.touched = union(this.stroke.touched, rect);
    return rect;
  }

  /** Ends the stroke. Returns the rectangle that it wrote to, or null, and whether anything changed. */
  commit() {
    this.render();
    this.stroke.brush.finish?.();
    const { label, touched } = this.stroke;
    this.stroke = null;
    return { rect: touched, changed: Boolean(touched) && this.record(label, touched) };
  }

  /** Drops the stroke. Returns the rectangle that changed, or null. */
  drop() {
    this.render();
    const { touched } = this.stroke;
    this.stroke = null;
    if (touched) copy(this.before, this.edited, touched);
    return touched;
  }

  /** Lays the opaque pixels of an image over the edited one, as one step. Returns the rectangle. */
  lay(label, image, left, top) {
    const source = words(image), target = words(this.edited), rect = { left, top, right: left + image.width, bottom: top + image.height };
    for (let y = 0, i = 0; y < image.height; y++) {
      for (let x = 0; x < image.width; x++, i++) if (image.data[4 * i + 3] === 255) target[(top + y) * this.width + left + x] = source[i];
    }
    this.record(label, rect);
    return rect;
  }

  record(label, rect, more = []) {
    const tiles = changes(this.before, this.edited, rect);
    copy(this.edited, this.before, rect);
    this.mark(rect);
    return this.history.add(label, [...more, ...tiles]);
  }

  undo() {
    return this.settle(this.history.undo(), -1);
  }

  redo() {
    return this.settle(this.history.redo(), 1);
  }

  settle(step, way) {
    if (!step) return null;
    copy(this.edited, this.before, step.rect);
    this.mark(step.rect);
    if (step.label === "keep") {
      this.version++;
      this.kept += way;
    }
    return step;
  }

  mark({ left, top, right, bottom }) {
    for (let row = Math.floor(top / CELL); row * CELL < bottom; row++) {
      for (let column = Math.floor(left / CELL); column * CELL < right; column++) this.cells.add(row * this.columns + column);
    }
  }

  /** The rectangle in which the image was edited, null if it is as it was. */
  changed() {
    let found = null;
    for (const cell of this.cells) {
      const left = cell % this.columns * CELL, top = Math.floor(cell / this.columns) * CELL;
      const area = difference(this.base, this.edited, clip({ left, top, right: left + CELL, bottom: top + CELL }, whole(this)));
      if (area) found = union(found, area);
      else this.cells.delete(cell);
    }
    return found;
  }

  /** The image with the model's result, which is of full size. */
  with(result) {
    const image = new ImageData(this.base.data.slice(), this.width);
    if (result) paste(image, result);
    return image;
  }

  /** Makes a result the image that further ones start from. Undoing takes it back. */
  keep(result) {
    const rect = union(result.area, this.changed());
    if (this.base === this.opened) this.base = new ImageData(this.opened.data.slice(), this.width);
    const base = new ImageData(this.base.data.slice(), this.width);
    this.version++;
    this.kept++;
    paste(this.base, result);
    copy(this.base, this.edited, rect);
    return this.record("keep", rect, changes(base, this.base, rect));
  }
}

function paste(image, { area, pixels }) {
  const source = words(pixels), target = words(image), { width } = pixels;
  for (let row = 0; row < pixels.height; row++) {
    target.set(source.subarray(row * width, (row + 1) * width), (area.top + row) * image.width + area.left);
  }
}
