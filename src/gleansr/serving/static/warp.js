// Liquify: pushing, enlarging and shrinking. A stroke gathers a field that says, for each place, how far away the pixels come from that it shows.
// The image before the stroke is resampled by it once, however long the stroke is.
import { falloff } from "./brush.js";
import { around, clip, union, whole } from "./pixels.js";

const HARDEST = 0.75;  // A brush without any slope would tear the image at its rim.
const COARSE = 4e6;  // From so many pixels on the field has fewer places than the image.

/** A stroke that moves pixels; see `begin` in tools.js. */
export class Warp {
  /**
   * @param {import("./brush.js").Layers} layers
   * @param {import("./brush.js").Brush} brush
   * @param {"push"|"enlarge"|"shrink"} tool
   */
  constructor(layers, brush, tool) {
    const { width, height } = layers.before;
    Object.assign(this, { layers, brush, tool, touched: null, hardness: Math.min(brush.hardness, HARDEST) });
    this.grid = Math.ceil(Math.sqrt(width * height / COARSE));  // pixels from one place of the field to the next
    this.columns = Math.ceil(width / this.grid) + 2;
    this.rows = Math.ceil(height / this.grid) + 2;
    this.fieldX = new Float32Array(this.columns * this.rows);
    this.fieldY = new Float32Array(this.columns * this.rows);
  }

  move(from, to) {
    const dx = to.x - from.x, dy = to.y - from.y, far = Math.hypot(dx, dy);
    if (!far) return;
    const steps = Math.ceil(far / Math.max(this.brush.radius * (1 - this.hardness) / 4, 0.5));
    for (let i = 1; i <= steps; i++) {
      const at = { x: from.x + dx * i / steps, y: from.y + dy * i / steps }, amount = this.brush.strength * to.pressure;
      if (this.tool === "push") this.step(at, () => [-dx / steps * amount, -dy / steps * amount]);
      else this.swell(at, amount * far / steps / this.brush.radius);
    }
  }

  hold(at, seconds) {
    if (this.tool !== "push") this.swell(at, 0.6 * seconds * this.brush.strength * at.pressure);
  }

  /** Enlarges or shrinks what is under the brush by about `amount` of its size. */
  swell(at, amount) {
    const part = (this.tool === "enlarge" ? 1 : -1) * Math.min(amount, 0.2);
    this.step(at, (x, y) => [part * (at.x - x), part * (at.y - y)]);
  }

  /**
   * Adds one small movement: what a place shows is from now on what was shown `offset(x, y)` away from it, in as far as the brush acts there.
   * Moving what the field shows, instead of adding to the field, makes the image follow the brush.
   */
  step(at, offset) {
    const { grid, columns, rows, fieldX, fieldY, hardness } = this, { radius } = this.brush, area = around(at, at, radius);
    const places = clip(
      { left: area.left / grid, top: area.top / grid, right: area.right / grid + 1, bottom: area.bottom / grid + 1 },
      { right: columns, bottom: rows },
    );
    if (!places) return;
    const across = places.right - places.left, nextX = new Float32Array(across * (places.bottom - places.top)), nextY = nextX.slice();
    for (let row = places.top, i = 0; row < places.bottom; row++) {
      for (let column = places.left; column < places.right; column++, i++) {
        const x = column * grid + 0.5, y = row * grid + 0.5, weight = falloff(Math.hypot(x - at.x, y - at.y) / radius, hardness);
        const place = row * columns + column;
        if (!weight) {
          nextX[i] = fieldX[place];
          nextY[i] = fieldY[place];
          continue;
        }
        const [dx, dy] = offset(x, y);
        const found = this.at((x + weight * dx - 0.5) / grid, (y + weight * dy - 0.5) / grid);
        nextX[i] = found.x + weight * dx;
        nextY[i] = found.y + weight * dy;
      }
    }
    for (let row = places.top, i = 0; row < places.bottom; row++, i += across) {
      fieldX.set(nextX.subarray(i, i + across), row * columns + places.left);
      fieldY.set(nextY.subarray(i, i + across), row * columns + places.left);
    }
    this.touched = union(this.touched, clip(around(at, at, radius + grid), whole(this.layers.before)));
  }

  /** The field between its places, by bilinear interpolation. */
  at(column, row) {
    const { columns, rows, fieldX, fieldY } = this;
    const left = Math.min(Math.max(Math.floor(column), 0), columns - 2), top = Math.min(Math.max(Math.floor(row), 0), rows - 2);
    const u = Math.min(Math.max(column - left, 0), 1), v = Math.min(Math.max(row - top, 0), 1);
    const i = top * columns + left, j = i + columns, a = (1 - u) * (1 - v), b = u * (1 - v), c = (1 - u) * v, d = u * v;
    return {
      x: a * fieldX[i] + b * fieldX[i + 1] + c * fieldX[j] + d * fieldX[j + 1],
      y: a * fieldY[i] + b * fieldY[i + 1] + c * fieldY[j] + d * fieldY[j + 1],
    };
  }

  render() {
    const rect = this.touched, { before, edited } = this.layers, { width } = before, { grid } = this;
    this.touched = null;
    if (!rect) return null;
    for (let y = rect.top; y < rect.bottom; y++) {
      for (let x = rect.left; x < rect.right; x++) {
        const { x: dx, y: dy } = this.at(x / grid, y / grid);
        sample(before, x + dx, y + dy, edited.data, (y * width + x) * 4);
      }
    }
    return rect;
  }
}

/** Writes to `out` at `place` what the image has at pixel (x, y), between pixels by bilinear interpolation, outside its border repeated. */
export function sample({ width, height, data }, x, y, out, place) {
  x = Math.min(Math.max(x, 0), width - 1);
  y = Math.min(Math.max(y, 0), height - 1);
  const left = Math.floor(x), top = Math.floor(y), u = x - left, v = y - top;
  const i = (top * width + left) * 4, right = u ? 4 : 0, j = v ? i + width * 4 : i;
  const opaque = data[i + 3] + data[i + right + 3] + data[j + 3] + data[j + right + 3] === 1020;
  let a = (1 - u) * (1 - v), b = u * (1 - v), c = (1 - u) * v, d = u * v;
  if (!opaque) {
    [a, b, c, d] = [a * data[i + 3], b * data[i + right + 3], c * data[j + 3], d * data[j + right + 3]];
    const alpha = a + b + c + d;
    out[place + 3] = alpha;
    if (!alpha) return out.fill(0, place, place + 3);
    [a, b, c, d] = [a / alpha, b / alpha, c / alpha, d / alpha];
  } else out[place + 3] = 255;
  for (let k = 0; k < 3; k++) out[place + k] = a * data[i + k] + b * data[i + right + k] + c * data[j + k] + d * data[j + right + k];
}
