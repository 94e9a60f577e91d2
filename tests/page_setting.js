// What the tests of the page's tools have at hand: the modules, made pictures, strokes, and what is found in pictures.
const { begin } = await import("./tools.js"), { select, selects } = await import("./move.js"), { falloff } = await import("./brush.js"), { Document } = await import("./document.js");
const pixels = await import("./pixels.js"), { History, changes } = await import("./history.js"), region = await import("./region.js");
const files = await import("./files.js"), { png } = await import("./png.js");

const draw = (width, height, value) => {
  const image = new ImageData(width, height);
  for (let y = 0, i = 0; y < height; y++) for (let x = 0; x < width; x++, i += 4) image.data.set([...value(x, y), 255], i);
  return image;
};

// A bright spot on grey, and where it is and how large.
const spot = (x, y, sigma = 3) => draw(128, 128, (u, v) => {
  const bright = 60 + 180 * Math.exp(-((u + 0.5 - x) ** 2 + (v + 0.5 - y) ** 2) / (2 * sigma ** 2));
  return [bright, bright, bright];
});
const found = (image) => {
  const places = Array.from({ length: image.data.length / 4 }, (_, i) => [Math.max(image.data[4 * i] - 70, 0), i % 128 + 0.5, Math.floor(i / 128) + 0.5]);
  const sum = (value) => places.reduce((all, [weight, x, y]) => all + weight * value(x, y), 0), all = sum(() => 1);
  const [x, y] = [sum((u) => u) / all, sum((_, v) => v) / all];
  return { x, y, spread: Math.sqrt(sum((u, v) => (u - x) ** 2 + (v - y) ** 2) / all) };
};

let seed = 7;
const random = () => (seed = (seed * 48271) % 2147483647) / 2147483647;
const noise = () => draw(128, 128, () => [random() * 255, random() * 255, random() * 255]);

const brush = (options) => ({ radius: 24, hardness: 0.25, strength: 1, colour: [200, 30, 90], ...options });
const at = (x, y, pressure = 1) => ({ x, y, pressure });
const line = (from, to, steps) => Array.from({ length: steps + 1 }, (_, i) => (
  at(from.x + (to.x - from.x) * i / steps, from.y + (to.y - from.y) * i / steps)
));

// Draws through the points, then stays for so many seconds.
const stroke = (document, tool, options, points, seconds = 0) => {
  const made = document.begin(tool, brush(options));
  made.move(points[0], points[0]);
  for (let i = 1; i < points.length; i++) {
    made.move(points[i - 1], points[i]);
    document.render();
  }
  for (let rest = seconds; rest > 0; rest -= 0.05) {
    made.hold(points.at(-1), 0.05);
    document.render();
  }
  return document.commit().changed;
};

const equal = (a, b) => pixels.difference(a, b, pixels.whole(a)) === null;
const values = (image, [left, top, right, bottom]) => {
  const out = [];
  for (let y = top; y < bottom; y++) for (let x = left; x < right; x++) out.push(image.data[(y * image.width + x) * 4]);
  return out;
};
const mean = (list) => list.reduce((a, b) => a + b) / list.length;
const deviation = (list) => Math.sqrt(mean(list.map((value) => (value - mean(list)) ** 2)));

// A slope of light with fine grain, with or without a dark spot on it.
const slope = (x, y, grain) => 90 + 0.5 * x + 0.3 * y + grain * ((7 * x + 13 * y) % 5 - 2);
const blemished = (spot, grain = 2) => draw(128, 128, (x, y) => {
  const dark = spot ? 70 * Math.exp(-((x + 0.5 - spot.x) ** 2 + (y + 0.5 - spot.y) ** 2) / 18) : 0, value = slope(x, y, grain) - dark;
  return [value, value * 0.9, value * 0.7];
});
const farthest = (a, b, [left, top, right, bottom]) => {
  const [one, other] = [a, b].map((image) => values(image, [left, top, right, bottom]));
  return Math.max(...one.map((value, i) => Math.abs(value - other[i])));
};
