// Zooming and panning of an element that lies in another, with wheel, mouse, fingers and keys; near the divider a drag moves that.
import { fitted, panned, zoomed } from "./place.js";

const NEAR = 24;  // pixels around the divider in which it is grasped

/** Shows an element of the size of an image in a frame. */
export class PanZoom {
  /**
   * @param {HTMLElement} frame takes the events
   * @param {HTMLElement} content is placed in it
   * @param {{split: () => number, divide: (split: number) => void}} divider where it is, from 0 to 1, and what moves it
   */
  constructor(frame, content, divider) {
    Object.assign(this, { frame, content, divider, x: 0, y: 0, scale: 1, width: 0, height: 0, fitted: true, pointers: new Map(), moved() {},
      tool: null,  // takes presses, drags and keys instead of the divider: down, move, up, key
    });
    const on = (name, work) => frame.addEventListener(name, (event) => { if (this.width) work.call(this, event); }, { passive: false });
    on("pointerdown", this.down);
    on("pointermove", this.move);
    for (const name of ["pointerup", "pointercancel"]) on(name, (event) => {
      this.pointers.delete(event.pointerId);
      if (this.grip === "tool") this.tool?.up();
      this.grip = null;
    });
    on("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY * (event.deltaMode === 1 ? 20 : 1) * (event.ctrlKey ? 0.01 : 0.002)), this.point(event));
    });
    on("keydown", this.key);
    on("dblclick", (event) => this.tool ? null : this.fitted ? this.zoom(4, this.point(event)) : this.fit());
    new ResizeObserver(() => { if (this.fitted) this.fit(); }).observe(frame);
  }

  /** Shows an image of that size, as it was shown if it has the size of the one before. */
  open(width, height) {
    const same = width === this.width && height === this.height;
    Object.assign(this, { width, height });
    Object.assign(this.content.style, { width: `${width}px`, height: `${height}px` });
    if (!same || this.fitted) this.fit();
  }

  get room() {
    return { width: this.frame.clientWidth, height: this.frame.clientHeight };
  }

  /** Shows the whole image. */
  fit() {
    if (this.width && this.room.width) this.put(fitted(this, this.room, 16), true);
  }

  /** Zooms around a point of the frame, by default its middle. */
  zoom(factor, at) {
    if (this.width) this.put(zoomed(this, factor, this, this.room, at));
  }

  pan(dx, dy) {
    this.put(panned(this, dx, dy, this, this.room));
  }

  put(place, whole = false) {
    Object.assign(this, place, { fitted: whole });
    this.place();
  }

  place() {
    this.content.style.transform = `translate(${this.x}px, ${this.y}px) scale(${this.scale})`;
    this.moved();
  }

  point({ clientX, clientY }) {
    const { left, top } = this.frame.getBoundingClientRect();
    return { x: clientX - left, y: clientY - top };
  }

  /** The place of a pointer in the content, in its pixels. */
  inContent(event) {
    const { x, y } = this.point(event);
    return { x: (x - this.x) / this.scale, y: (y - this.y) / this.scale };
  }

  down(event) {
    event.preventDefault();
    this.frame.focus({ preventScroll: true, focusVisible: false });
    this.frame.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, this.point(event));
    const at = this.x + this.divider.split() * this.width * this.scale;
    if (this.grip === "tool") this.tool?.up();  // a second finger zooms
    this.grip = this.pointers.size > 1 ? "pinch" : this.tool ? "tool" : Math.abs(this.point(event).x - at) <= NEAR || this.fitted ? "divider" : "image";
    if (this.grip === "tool") this.tool.down(this.inContent(event));
    if (this.grip === "divider") this.divide(event);
    if (this.grip === "pinch") this.last = this.spread();
  }

  move(event) {
    const before = this.pointers.get(event.pointerId), now = this.point(event);
    if (!before) return;
    this.pointers.set(event.pointerId, now);
    if (this.grip === "divider") this.divide(event);
    else if (this.grip === "tool") this.tool?.move(this.inContent(event));
    else if (this.grip === "image") this.pan(now.x - before.x, now.y - before.y);
    else if (this.grip === "pinch") {
      const { far, middle } = this.spread(), { last } = this;
      this.zoom(far / last.far, middle);
      this.pan(middle.x - last.middle.x, middle.y - last.middle.y);
      this.last = { far, middle };
    }
  }

  spread() {
    const [a, b = a] = [...this.pointers.values()];
    return { far: Math.max(Math.hypot(a.x - b.x, a.y - b.y), 1), middle: { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 } };
  }

  divide(event) {
    this.divider.divide(Math.min(Math.max((this.point(event).x - this.x) / (this.width * this.scale), 0), 1));
  }

  key(event) {
    const way = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (event.target !== this.frame) return;
    if (this.tool) return this.tool.key(event);
    if (!way) return;
    event.preventDefault();
    if (this.fitted && way[0]) this.divider.divide(Math.min(Math.max(this.divider.split() - way[0] * 0.02, 0), 1));
    else this.pan(40 * way[0], 40 * way[1]);
  }
}
