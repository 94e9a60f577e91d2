// The heads of an enlarged photo: which were found, and those that the user marks or leaves out.
import { drag, hit, place } from "./region.js";
import { $, say } from "./status.js";

/** @typedef {import("./engine/upscale.js").TreatedHead} Head */

const LEAST = 12;  // pixels of the photo across the smallest square
const NEAR = 22;  // pixels around a corner in which it is grasped
const KINDS = { faces: "Face", cats: "Cat" };

/** The panel's part for heads, and their outlines over the image. A tool of `PanZoom` while a square is chosen. */
export class Heads {
  /**
   * @param {import("./panzoom.js").PanZoom} view
   * @param {() => void} changed is called when the user has changed `chosen`
   */
  constructor(view, changed) {
    Object.assign(this, { view, changed, chosen: null, shown: null, square: null, start: null, pointed: null });
    $("mark-head").addEventListener("click", () => this.mark());
    $("add-head").addEventListener("click", () => this.add());
    $("drop-head").addEventListener("click", () => this.end());
    $("outlines").addEventListener("change", () => this.place());
  }

  /** Forgets the heads of the image before. */
  forget() {
    this.chosen = null;
    this.show(null);
  }

  /** Lists the heads of a result; null: of one without any. @param {Head[]|null} heads */
  show(heads) {
    this.shown = heads;
    this.end();
    $("heads").hidden = !heads;
    const counts = {};
    $("head-list").replaceChildren(...(heads ?? []).map((head, i) => this.chip(head, i, counts[head.category] = (counts[head.category] ?? 0) + 1)));
    $("outlines-row").hidden = !heads?.length;
    this.place();
  }

  chip(head, i, number) {
    const item = document.createElement("li"), name = `${KINDS[head.category]} ${number}`, chip = document.createElement(head.model ? "button" : "span");
    chip.className = "head";
    chip.textContent = head.model ? `${name} · ${head.model} ✕` : `${name} · too large for the models`;
    if (head.model) {
      Object.assign(chip, { type: "button", ariaLabel: `Leave out ${name.toLowerCase()}`, title: "Leave it out" });
      chip.addEventListener("click", () => this.choose(this.shown.filter((one) => one !== head)));
    }
    for (const [event, on] of [["pointerenter", true], ["focus", true], ["pointerleave", false], ["blur", false]]) {
      chip.addEventListener(event, () => { this.pointed = on ? i : null; this.place(); });
    }
    item.append(chip);
    return item;
  }

  choose(heads) {
    Object.assign(this, { chosen: heads, pointed: null });
    $("mark-head").focus({ preventScroll: true });  // the button that was pressed is gone
    this.changed();
  }

  // ------------------------------------------------------------------------------------------------------------ marking by hand

  get limits() {
    return { width: $("small").naturalWidth, height: $("small").naturalHeight, ratio: 1, least: LEAST };
  }

  /** Begins to choose a square. */
  mark() {
    const { width, height } = this.limits, side = Math.min(width, height) / 3;
    this.square = place(this.limits, { left: (width - side) / 2, top: (height - side) / 2, width: side });
    this.view.tool = this;
    this.view.moved();
    $("enlarged").focus({ preventScroll: true });
    say("Put the square around the whole head, hair and chin included. Then press Add.");
  }

  add() {
    const { left, top, right } = this.square, category = document.querySelector("input[name=kind]:checked").value;
    this.end();
    this.choose([...this.shown, { category, left, top, width: right - left, model: null, marked: true }]);
  }

  /** Ends choosing a square. Returns whether one was being chosen. */
  end() {
    const was = this.square !== null;
    Object.assign(this, { square: null, start: null });
    this.view.tool = null;
    if (was) this.view.moved();
    return was;
  }

  /** Pixels of the photo per pixel of what is shown. */
  get ratio() {
    return this.limits.width / this.view.width;
  }

  inPhoto({ x, y }) {
    return { x: x * this.ratio, y: y * this.ratio };
  }

  // As a tool: a press, a drag and a lift at places in the content.

  down(at) {
    const from = this.inPhoto(at), part = hit(this.square, from, NEAR * this.ratio / this.view.scale);
    this.start = { from, part, square: this.square };
  }

  move(at) {
    if (!this.start) return;
    const { from, part, square } = this.start, to = this.inPhoto(at), { width, height } = this.limits;
    const within = { x: Math.min(Math.max(from.x, 0), width), y: Math.min(Math.max(from.y, 0), height) };
    this.square = drag(this.limits, square, part, within, to);
    this.place();
  }

  up() {
    this.start = null;
  }

  key(event) {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key], { left, top, right } = this.square;
    const grows = { "]": 1, "[": -1, "+": 1, "-": -1 }[event.key], step = (event.shiftKey ? 0.25 : 0.05) * (right - left);
    if (event.key === "Enter") this.add();
    else if (way) this.square = place(this.limits, { left: left + way[0] * Math.max(1, step), top: top + way[1] * Math.max(1, step), width: right - left });
    else if (grows) {
      const more = grows * Math.max(2, step);
      this.square = place(this.limits, { left: left - more / 2, top: top - more / 2, width: right - left + more });
    } else return;
    event.preventDefault();
    event.stopPropagation();
    this.place();
  }

  /** Puts the outlines where the heads are shown. */
  place() {
    const { square, shown } = this, all = $("outlines").checked || square, heads = (shown ?? []).filter((_, i) => all || i === this.pointed);
    $("marking").hidden = !square;
    $("mark-head").hidden = Boolean(square);
    const boxes = heads.map(({ left, top, width, category }) => this.outline({ left, top, right: left + width }, category));
    if (square) {
      const box = this.outline(square, "chosen");
      box.append(...Array.from({ length: 4 }, () => document.createElement("i")));
      boxes.push(box);
    }
    $("squares-over").replaceChildren(...boxes);
  }

  outline({ left, top, right }, kind) {
    const { x, y, scale } = this.view, by = scale / this.ratio, box = document.createElement("div"), side = `${(right - left) * by}px`;
    box.className = `outline ${kind}`;
    Object.assign(box.style, { transform: `translate(${x + left * by}px, ${y + top * by}px)`, width: side, height: side });
    return box;
  }
}
