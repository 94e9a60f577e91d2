// Finds heads of one kind by a cascade of Haar features, as OpenCV's CascadeClassifier does (Viola and Jones, 2001; Lienhart and Maydt, 2002).
// Its steps are OpenCV's, down to their rounding, so that both find the same. `gleansr page` writes cascades from OpenCV's files.

/**
 * A cascade.
 * @typedef {object} Cascade
 * @property {number} side of its square window, in pixels
 * @property {number[][]} features each 1 if it is tilted, else 0, then left, top, width, height and weight of each of its rectangles
 * @property {{threshold: number, trees: {nodes: number[][], leaves: number[]}[]}[]} stages a node: where it leads below its threshold, and
 *   otherwise, a node above 0, else the leaf of that negative number; the feature; the threshold
 */

/** @typedef {{data: Uint8Array, width: number, height: number}} Grey */
/** @typedef {{left: number, top: number, width: number, score: number, count: number}} Found
 *   score: by how much the last stage was passed; count: windows that agree */

const ALIKE = 0.2;  // distance of windows that show the same, as a share of their sides
const MARGIN = 1e-5;  // OpenCV lowers the thresholds of stages by it
const FLAT = 10;  // standard deviation below which a window shows nothing

/** A cascade in arrays, as `find` takes it. @param {Cascade} cascade */
export function compiled({ side, features, stages }) {
  const trees = stages.flatMap((stage) => stage.trees), nodes = trees.reduce((sum, tree) => sum + tree.nodes.length, 0);
  const made = {
    side, features, tilted: features.some(([tilted]) => tilted),
    feature: new Int32Array(nodes), threshold: new Float32Array(nodes), below: new Int32Array(nodes), above: new Int32Array(nodes),
    leaves: new Float32Array(trees.reduce((sum, tree) => sum + tree.leaves.length, 0)), roots: new Int32Array(trees.length),
    ends: new Int32Array(stages.length), limits: Float32Array.from(stages, ({ threshold }) => Math.fround(threshold) - Math.fround(MARGIN)),
  };
  let node = 0, leaf = 0, count = 0;
  for (const [i, stage] of stages.entries()) {
    for (const tree of stage.trees) {
      const first = node, place = (next) => next > 0 ? first + next : ~(leaf - next);
      made.roots[count++] = first;
      for (const [below, above, feature, threshold] of tree.nodes) {
        made.below[node] = place(below);
        made.above[node] = place(above);
        made.feature[node] = feature;
        made.threshold[node++] = threshold;
      }
      made.leaves.set(tree.leaves, leaf);
      leaf += tree.leaves.length;
    }
    made.ends[i] = count;
  }
  return made;
}

/**
 * The heads in an image: groups of windows in which all stages are passed.
 * @param {ReturnType<compiled>} cascade
 * @param {Grey} image
 * @param {{step: number, neighbours: number, least?: number, most?: number}} options step: ratio of successive window sizes; neighbours:
 *   further windows that must agree; least, most: of windows, in pixels
 * @returns {Found[]}
 */
export function find(cascade, image, { step, neighbours, least = 0, most = Infinity }) {
  const { side } = cascade, windows = [];
  for (let exact = 1; ; exact *= step) {
    const across = even(side * exact), scale = Math.fround(exact);
    if (across > Math.min(image.width, image.height, most)) break;
    if (across < least) continue;
    const small = shrunk(image, even(image.width / scale), even(image.height / scale));
    for (const [x, y, score] of passed(cascade, small, scale >= 2 ? 1 : 2)) {
      windows.push({ left: even(x * scale), top: even(y * scale), width: across, score });
    }
  }
  return grouped(windows, neighbours);
}

/** The windows of an image that pass: left, top, and by how much. */
function passed(cascade, image, step) {
  const { side, threshold, below, above, leaves, roots, ends, limits } = cascade, { width, height } = image, across = width + 1;
  const { sums, squares } = integrals(image), slanted = cascade.tilted ? tiltedIntegral(image) : sums;
  const { corners: c, weights, slants } = places(cascade, across), found = [], area = (side - 2) ** 2;
  const inner = across + 1, right = inner + side - 2, lower = inner + (side - 2) * across, last = lower + side - 2;
  for (let y = 0; y + side <= height; y += step) {
    for (let x = 0; x + side <= width; x += step) {
      const at = y * across + x, sum = sums[at + inner] - sums[at + right] - sums[at + lower] + sums[at + last];
      const spread = area * (squares[at + inner] - squares[at + right] - squares[at + lower] + squares[at + last]) - sum * sum;
      if (spread <= 0) continue;
      const norm = Math.fround(1 / Math.sqrt(spread));
      if (area * norm * FLAT >= 1) continue;
      let stage = 0, tree = 0, score = 0;
      for (; stage < ends.length; stage++) {
        score = 0;
        for (const end = ends[stage]; tree < end; tree++) {
          let node = roots[tree];
          do {
            const table = slants[node] ? slanted : sums, i = 12 * node, w = 3 * node;
            let value = weights[w] * (table[at + c[i]] - table[at + c[i + 1]] - table[at + c[i + 2]] + table[at + c[i + 3]])
              + weights[w + 1] * (table[at + c[i + 4]] - table[at + c[i + 5]] - table[at + c[i + 6]] + table[at + c[i + 7]]);
            if (weights[w + 2]) value += weights[w + 2] * (table[at + c[i + 8]] - table[at + c[i + 9]] - table[at + c[i + 10]] + table[at + c[i + 11]]);
            node = Math.fround(value) * norm < threshold[node] ? below[node] : above[node];
          } while (node >= 0);
          score += leaves[~node];
        }
        if (score < limits[stage]) break;
      }
      if (stage === ends.length) found.push([x, y, score]);
      else if (stage === 0) x += step;  // next to a window that shows nothing at all, OpenCV looks no closer
    }
  }
  return found;
}

/** Where the corners of each node's rectangles lie in a table of that width, from a window's first value on. */
function places({ features, feature }, across) {
  const corners = new Int32Array(12 * feature.length), weights = new Float32Array(3 * feature.length), slants = new Uint8Array(feature.length);
  for (const [node, which] of feature.entries()) {
    const [tilted, ...rectangles] = features[which];
    slants[node] = tilted;
    for (let i = 0; 5 * i < rectangles.length; i++) {
      const [x, y, w, h, weight] = rectangles.slice(5 * i), first = y * across + x;
      const [right, down] = tilted ? [w * across + w, h * across - h] : [w, h * across];
      weights[3 * node + i] = weight;
      corners.set([first, first + right, first + down, first + right + down], 12 * node + 4 * i);
    }
  }
  return { corners, weights, slants };
}

/** The sums over all that is left of and above each pixel, of values and of their squares. */
function integrals({ data, width, height }) {
  const across = width + 1, sums = new Int32Array(across * (height + 1)), squares = new Float64Array(sums.length);
  for (let y = 0, from = 0; y < height; y++) {
    let row = 0, square = 0;
    for (let x = 0, at = (y + 1) * across + 1; x < width; x++, at++, from++) {
      const value = data[from];
      sums[at] = sums[at - across] + (row += value);
      squares[at] = squares[at - across] + (square += value * value);
    }
  }
  return { sums, squares };
}

/** The sums over the triangles above each pixel, whose sides are diagonals. */
function tiltedIntegral({ data, width, height }) {
  // A triangle is those of its two upper neighbours, less what both hold, and the column of two pixels between them. Columns beyond the image
  // are those of an image of zeros, as far as a triangle that is looked at reaches.
  const wide = width + 2 * height + 2, rows = [0, 1, 2].map(() => new Int32Array(wide)), across = width + 1;
  const out = new Int32Array(across * (height + 1)), value = (x, y) => x >= 0 && x < width && y >= 0 ? data[y * width + x] : 0;
  for (let y = 1; y <= height; y++) {
    const [old, last, now] = rows;
    for (let i = 1; i < wide - 1; i++) {
      const x = i - height - 1;  // the triangle's tip lies at pixel (x - 1, y - 1)
      now[i] = last[i - 1] + last[i + 1] - old[i] + value(x - 1, y - 1) + value(x - 1, y - 2);
    }
    out.set(now.subarray(height + 1, height + 1 + across), y * across);
    rows.push(rows.shift());
  }
  return out;
}

/** An image of another size, by OpenCV's exact bilinear interpolation: in whole numbers, between the two nearest pixels. */
export function shrunk({ data, width, height }, columns, rows) {
  if (columns === width && rows === height) return { data, width, height };
  const along = (length, wanted) => Array.from({ length: wanted }, (_, i) => {
    const at = (i + 0.5) * (length / wanted) - 0.5, first = Math.floor(at);
    if (first < 0) return [0, 0, 0];
    return first >= length - 1 ? [length - 1, length - 1, 0] : [first, first + 1, even((at - first) * 256)];
  });
  const across = along(width, columns), out = new Uint8Array(columns * rows), cache = new Map();
  const row = (y) => {
    if (!cache.has(y)) cache.set(y, Int32Array.from(across, ([a, b, part]) => data[y * width + a] * (256 - part) + data[y * width + b] * part));
    return cache.get(y);
  };
  for (const [y, [top, bottom, part]] of along(height, rows).entries()) {
    const upper = row(top), lower = row(bottom);
    for (let x = 0, to = y * columns; x < columns; x++, to++) out[to] = (upper[x] * (256 - part) + lower[x] * part + 0x8000) >> 16;
    for (const old of cache.keys()) if (old < top) cache.delete(old);
  }
  return { data: out, width: columns, height: rows };
}

/** The means of groups of windows that show the same, without those of too few windows and those inside larger ones. */
function grouped(windows, neighbours) {
  const groups = parts(windows).map((members) => {
    const mean = (name) => even(Math.fround(members.reduce((sum, one) => sum + one[name], 0) * Math.fround(1 / members.length)));
    return { left: mean("left"), top: mean("top"), width: mean("width"), score: Math.max(...members.map(({ score }) => score)), count: members.length };
  }).filter(({ count }) => count > neighbours);
  const inside = (one, other) => {
    const slack = Math.trunc(other.width * ALIKE);
    return one.left >= other.left - slack && one.top >= other.top - slack && one.left + one.width <= other.left + other.width + slack
      && one.top + one.width <= other.top + other.width + slack && (other.count > Math.max(3, one.count) || one.count < 3);
  };
  return groups.filter((one) => !groups.some((other) => other !== one && inside(one, other)));
}

/** Windows in groups: each is like another one of its group. */
function parts(windows) {
  const alike = (a, b) => {
    const near = ALIKE * Math.min(a.width, b.width), right = a.left + a.width - b.left - b.width, bottom = a.top + a.width - b.top - b.width;
    return Math.max(Math.abs(a.left - b.left), Math.abs(a.top - b.top), Math.abs(right), Math.abs(bottom)) <= near;
  };
  const root = windows.map((_, i) => i), top = (i) => {
    while (root[i] !== i) i = root[i] = root[root[i]];
    return i;
  };
  for (let i = 0; i < windows.length; i++) for (let j = 0; j < i; j++) if (alike(windows[i], windows[j])) root[top(i)] = top(j);
  const groups = new Map();
  for (const [i, one] of windows.entries()) groups.set(top(i), [...groups.get(top(i)) ?? [], one]);
  return [...groups.values()];
}

/** To the nearest whole number, halves to the even one. */
const even = (value) => {
  const below = Math.floor(value), rest = value - below;
  return rest < 0.5 || rest === 0.5 && below % 2 === 0 ? below : below + 1;
};
