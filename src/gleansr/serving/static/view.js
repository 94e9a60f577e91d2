// The stage: draws the image, the model's result, the comparison, the mask and what the model sees, at any zoom.
import { clip, union } from "./pixels.js";
import { fitted, panned, shown, zoomed } from "./place.js";
import { Tiles } from "./tiles.js";

const SQUARES = 8;  // from so many on, pixels are shown as squares

/** Draws a document on a canvas. Set its fields, then call `changed`. */
export class Stage {
  /** @param {HTMLCanvasElement} canvas fills its parent */
  constructor(canvas) {
    Object.assign(this, {
      canvas, context: canvas.getContext("2d"), view: { scale: 1, x: 0, y: 0 }, fitted: true,
      layers: null, stale: null, waiting: [], moved() {},
      result: null,  // what the model made; see refine.js
      mask: null,  // {area, canvas} to be laid over the image
      show: "refined",  // "edit", "compare"
      raw: false,  // the edit instead of the result, until there is one
      peek: false,  // the image as it was opened instead of anything else
      split: 0.5,  // of the image's width that the comparison shows as it was opened
      frame: null, framing: false,  // the part of the image that the model sees, and whether it is being chosen
      lasso: null,  // the path around what is selected, or is being selected
    });
    new ResizeObserver(() => this.resize()).observe(canvas.parentElement);
  }

  /** Shows another document. */
  open(document) {
    const tiles = new Map();
    const layer = (image) => tiles.get(image) ?? tiles.set(image, new Tiles(image)).get(image);
    this.document = document;
    this.layers = { get opened() { return layer(document.opened); }, get base() { return layer(document.base); }, edited: layer(document.edited) };
    Object.assign(this, { result: null, mask: null, raw: false, frame: null, lasso: null });
    this.fit();
  }

  /** Draws again, all or what a rectangle of the image covers. */
  changed(rect = null) {
    const { scale, x, y } = this.view, all = { left: 0, top: 0, right: this.canvas.width, bottom: this.canvas.height };
    const area = rect ? clip({
      left: rect.left * scale + x - 2, top: rect.top * scale + y - 2, right: rect.right * scale + x + 2, bottom: rect.bottom * scale + y + 2,
    }, all) : all;
    if (!this.stale && area) requestAnimationFrame(() => this.draw());
    this.stale = union(this.stale, area);
  }

  /** Tells that pixels of the edited image have changed, or of the base, too. */
  written(rect, base = false) {
    this.layers.edited.changed(rect);
    if (base) this.layers.base.changed(rect);
    this.changed(rect);
  }

  /** Resolves when what was changed has been drawn. */
  drawn() {
    this.changed();
    return new Promise((resolve) => this.waiting.push(resolve));
  }

  // ------------------------------------------------------------------------------------------------------------ where the image is

  resize() {
    const { clientWidth, clientHeight } = this.canvas.parentElement, ratio = window.devicePixelRatio;
    const [width, height] = [Math.round(clientWidth * ratio), Math.round(clientHeight * ratio)];
    if (!width || !height || width === this.canvas.width && height === this.canvas.height) return;
    this.view.x += (width - this.canvas.width) / 2;
    this.view.y += (height - this.canvas.height) / 2;
    Object.assign(this.canvas, { width, height });
    if (this.fitted) this.fit();
    this.changed();
    this.moved();
    this.draw();  // at once, since a resized canvas is empty
  }

  /** Shows the whole image. */
  fit() {
    if (!this.document) return;
    this.put(fitted(this.document, this.canvas, 12 * window.devicePixelRatio), true);
  }

  /** Shows a rectangle of the image as large as it can be. */
  zoomTo(rect) {
    this.put(shown(rect, this.document, this.canvas));
  }

  /** Zooms around a point of the canvas, by default its middle. */
  zoom(factor, at) {
    this.put(zoomed(this.view, factor, this.document, this.canvas, at));
  }

  /** Moves the image by so many canvas pixels, as long as some of it stays in sight. */
  pan(dx, dy) {
    this.put(panned(this.view, dx, dy, this.document, this.canvas));
  }

  put(view, whole = false) {
    Object.assign(this, { view, fitted: whole });
    this.changed();
    this.moved();
  }

  /** The place in the canvas of a pointer. */
  onCanvas({ clientX, clientY }) {
    const box = this.canvas.getBoundingClientRect();
    return { x: (clientX - box.left) * this.canvas.width / box.width, y: (clientY - box.top) * this.canvas.height / box.height };
  }

  /** The place in the image of a pointer. */
  onImage(event) {
    const { x, y } = this.onCanvas(event), { view } = this;
    return { x: (x - view.x) / view.scale, y: (y - view.y) / view.scale };
  }

  /** The colour that is shown at a place of the image, null outside. */
  colour({ x, y }) {
    const { document, result } = this, [left, top] = [Math.floor(x), Math.floor(y)];
    if (left < 0 || top < 0 || left >= document.width || top >= document.height) return null;
    const at = (image, column, row) => [...image.data.subarray((row * image.width + column) * 4, (row * image.width + column) * 4 + 3)];
    if (this.show === "edit" || this.raw) return at(document.edited, left, top);
    const inside = result && { x: Math.floor((left - result.area.left) / result.by), y: Math.floor((top - result.area.top) / result.by) };
    if (inside && inside.x >= 0 && inside.y >= 0 && inside.x < result.pixels.width && inside.y < result.pixels.height) {
      return at(result.pixels, inside.x, inside.y);
    }
    return at(document.base, left, top);
  }

  // ------------------------------------------------------------------------------------------------------------ drawing

  draw() {
    const { context, stale, layers, view } = this;
    this.stale = null;
    if (layers && stale) {
      this.within(stale, () => {
        context.clearRect(stale.left, stale.top, stale.right - stale.left, stale.bottom - stale.top);
        context.imageSmoothingEnabled = view.scale < SQUARES;
        context.imageSmoothingQuality = "high";
        this.drawLayers(stale);
        if (this.mask && !this.peek) this.over(this.mask);
        if (this.frame && this.show !== "compare" && !this.peek) this.drawFrame();
        if (this.lasso) this.drawLasso();
      });
    }
    for (const resolve of this.waiting.splice(0)) resolve();
  }

  drawLayers(seen) {
    const { layers, context, view, document } = this;
    if (this.peek) return layers.opened.draw(context, view, seen);
    if (this.show !== "compare") return this.drawEdited(seen);
    const cut = Math.round(view.x + this.split * document.width * view.scale);
    const before = clip(seen, { left: 0, right: cut, bottom: Infinity });
    const after = clip(seen, { left: Math.max(cut, 0), right: Infinity, bottom: Infinity });
    if (before) this.within(before, () => layers.opened.draw(context, view, before));
    if (after) this.within(after, () => this.drawEdited(after));
  }

  drawEdited(seen) {
    if (this.show === "edit" || this.raw) return this.layers.edited.draw(this.context, this.view, seen);
    this.layers.base.draw(this.context, this.view, seen);
    if (this.result) this.over(this.result);
  }

  within({ left, top, right, bottom }, paint) {
    this.context.save();
    this.context.beginPath();
    this.context.rect(left, top, right - left, bottom - top);
    this.context.clip();
    paint();
    this.context.restore();
  }

  over({ area, canvas }) {
    const { left, top, right, bottom } = this.onScreen(area);
    this.context.drawImage(canvas, left, top, right - left, bottom - top);
  }

  onScreen({ left, top, right, bottom }) {
    const { scale, x, y } = this.view;
    return {
      left: Math.round(left * scale + x), top: Math.round(top * scale + y),
      right: Math.round(right * scale + x), bottom: Math.round(bottom * scale + y),
    };
  }

  drawLasso() {
    const { context, view } = this, ratio = window.devicePixelRatio;
    context.lineWidth = Math.max(1, Math.round(1.5 * ratio));
    context.beginPath();
    for (const { x, y } of this.lasso) context.lineTo(x * view.scale + view.x, y * view.scale + view.y);
    context.closePath();
    for (const [colour, dash] of [["#000", []], ["#fff", [6 * ratio, 6 * ratio]]]) {
      context.strokeStyle = colour;
      context.setLineDash(dash);
      context.stroke();
    }
  }

  drawFrame() {
    const { context, canvas, framing } = this, { left, top, right, bottom } = this.onScreen(this.frame);
    const ratio = window.devicePixelRatio, dash = [6 * ratio, 6 * ratio];
    if (framing) {
      context.fillStyle = "rgb(0 0 0 / .5)";
      context.beginPath();
      context.rect(0, 0, canvas.width, canvas.height);
      context.rect(left, top, right - left, bottom - top);
      context.fill("evenodd");
    }
    context.lineWidth = Math.max(1, Math.round(ratio));
    for (const [colour, gaps] of [[framing ? "#000" : "rgb(0 0 0 / .35)", []], [framing ? "#fff" : "rgb(255 255 255 / .6)", dash]]) {
      context.strokeStyle = colour;
      context.setLineDash(gaps);
      context.strokeRect(left + 0.5, top + 0.5, right - left - 1, bottom - top - 1);
    }
    if (!framing) return;
    context.fillStyle = "#fff";
    context.setLineDash([]);
    context.strokeStyle = "#000";
    for (const x of [left, right]) {
      for (const y of [top, bottom]) {
        context.beginPath();
        context.arc(x, y, 6 * ratio, 0, 7);
        context.fill();
        context.stroke();
      }
    }
  }
}
