// Elements, scales, ticks and numbers as text: what every chart needs.

const SVG = "http://www.w3.org/2000/svg";

function svg(parent, name, attributes = {}, text = "") {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text) made.textContent = text;
  parent.append(made);
  return made;
}

function html(parent, name, className = "", text = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text) made.textContent = text;
  parent.append(made);
  return made;
}

// From a domain to pixels. `ticks` are values, `place` a value's pixel, `value` a pixel's value.
function scale(axis, low, high, from, to, room) {
  return axis.is_log ? logScale(low, high, from, to, room) : linearScale(axis, low, high, from, to, room);
}

function linearScale(axis, low, high, from, to, room) {
  const step = niceStep((high - low) / Math.max(1, room), axis.is_share ? 0.01 : 0);
  const first = Math.floor(low / step + 1e-9) * step;
  const last = Math.ceil(high / step - 1e-9) * step || step;
  const ticks = [];
  for (let i = 0; first + i * step <= last + step / 2; i++) ticks.push(+(first + i * step).toPrecision(12));
  const place = (value) => from + ((value - first) / (last - first)) * (to - from);
  const value = (pixel) => first + ((pixel - from) / (to - from)) * (last - first);
  return { ticks, place, value, low: first, high: last };
}

function niceStep(least, smallest) {
  const power = 10 ** Math.floor(Math.log10(least || 1));
  const step = [1, 2, 2.5, 5, 10].find((factor) => factor * power >= least * 0.999) * power;
  return Math.max(step, smallest);
}

function logScale(low, high, from, to, room) {
  const [first, last] = low < high ? [low, high] : [low / 2, high * 2];
  const [a, b] = [Math.log10(first), Math.log10(last)];
  const place = (value) => from + ((Math.log10(Math.max(value, first)) - a) / (b - a)) * (to - from);
  const value = (pixel) => 10 ** (a + ((pixel - from) / (to - from)) * (b - a));
  return { ticks: logTicks(first, last, room), place, value, low: first, high: last };
}

// The finest of 1-2-5, 1-3, whole decades, every so many decades that has room.
function logTicks(low, high, room) {
  const powers = [];
  for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++) powers.push(p);
  const within = (values) => values.filter((v) => v >= low * 0.999 && v <= high * 1.001);
  for (const factors of [[1, 2, 3, 5, 7], [1, 2, 5], [1, 3], [1]]) {
    const ticks = within(powers.flatMap((p) => factors.map((f) => +(f * 10 ** p).toPrecision(6))));
    if (ticks.length <= room || factors.length === 1) {
      const every = Math.ceil(ticks.length / room);
      return ticks.length ? ticks.filter((_, i) => i % every === 0) : [low, high];
    }
  }
}

function asTick(axis, value) {
  if (axis.is_share) return `${+(value * 100).toPrecision(4)} %`;
  return value.toLocaleString("en", { maximumSignificantDigits: 6 });
}

function asText(axis, value) {
  if (axis.is_share) return `${(value * 100).toFixed(1)} %`;
  const digits = Math.abs(value) >= 1000 ? 0 : Math.abs(value) >= 100 ? 1 : 2;
  return value.toLocaleString("en", { maximumFractionDigits: digits });
}

// What an axis measures and its unit: "TTFT (ms)" is TTFT and ms.
function unitOf(axis) {
  const found = /\(([^)]*)\)\s*$/.exec(axis.label);
  return axis.is_share || !found ? "" : ` ${found[1]}`;
}

const LEFT = 62, RIGHT = 18, TOP = 12, BOTTOM = 44;

// The empty chart: frame, axes, ticks, titles.
function frame(figure, spec, width, height) {
  const root = svg(figure, "svg", {
    class: "chart", viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": spec.title,
  });
  return { root, left: LEFT, right: width - RIGHT, top: TOP, bottom: height - BOTTOM };
}

function drawYAxis(box, axis, y) {
  for (const tick of y.ticks) {
    const at = y.place(tick);
    svg(box.root, "line", { class: "gridline", x1: box.left, x2: box.right, y1: at, y2: at });
    svg(box.root, "text", { x: box.left - 8, y: at + 4, "text-anchor": "end" }, asTick(axis, tick));
  }
  const middle = (box.top + box.bottom) / 2;
  svg(box.root, "text", { transform: `translate(13 ${middle}) rotate(-90)`, "text-anchor": "middle" }, axis.label);
}

function drawXAxis(box, axis, x) {
  svg(box.root, "line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom });
  for (const tick of x.ticks) {
    const at = x.place(tick);
    if (at > box.right + 1) continue;
    svg(box.root, "line", { class: "axis", x1: at, x2: at, y1: box.bottom, y2: box.bottom + 5 });
    svg(box.root, "text", { x: at, y: box.bottom + 18, "text-anchor": "middle" }, asTick(axis, tick));
  }
  drawXTitle(box, axis.label);
}

function drawXTitle(box, label) {
  const middle = (box.left + box.right) / 2;
  svg(box.root, "text", { x: middle, y: box.bottom + 38, "text-anchor": "middle" }, label);
}

function legend(figure, entries) {
  const list = html(figure, "ul", "legend");
  for (const { name, colour, dashed, isArea } of entries) {
    const item = html(list, "li");
    const swatch = svg(item, "svg", { viewBox: "0 0 24 10", "aria-hidden": "true" });
    if (isArea) svg(swatch, "rect", { class: `bar ${colour}`, x: 4, width: 12, height: 10, rx: 2 });
    else svg(swatch, "path", { class: `line ${colour}${dashed ? " dashed" : ""}`, d: "M0 5H24" });
    item.append(name);
  }
}
