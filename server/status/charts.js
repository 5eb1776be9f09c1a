// Small charts of the last minutes: lines, or areas one upon another. All text is written as text.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 130, LEFT = 46, RIGHT = 8, TOP = 8, BOTTOM = 20;

function make(parent, name, className = "", text = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== "") made.textContent = text;
  parent.append(made);
  return made;
}

function svg(parent, name, attributes, text = "") {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text) made.textContent = text;
  parent.append(made);
  return made;
}

// A chart in a figure of its own; `draw` draws it anew. `spec`: title, about, unit, factor (of what
// is told), series [{name, className}], `of` (their values), stacked, limit (a line across).
function chart(parent, spec) {
  const figure = make(parent, "figure");
  const caption = make(figure, "figcaption", "", `${spec.title} `);
  make(caption, "small", "", spec.about);
  const legend = make(figure, "ul", "legend");
  const root = svg(figure, "svg", { height: HEIGHT, role: "img", "aria-label": `${spec.title}, ${spec.about}` });
  let told = null, pointed = null;

  function draw() {
    if (!told) return;
    const width = Math.max(200, root.clientWidth || figure.clientWidth - 28);
    root.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    root.replaceChildren();
    const { at, series } = told;
    const bands = spec.stacked ? stack(series) : series.map((values) => [null, values]);
    const most = Math.max(spec.limit ?? 0, ...bands.flatMap(([, top]) => top.filter((v) => v !== null)));
    const ticks = ticksTo(most || 1);
    const high = ticks[ticks.length - 1];
    const first = at[0] ?? 0, last = at[at.length - 1] ?? 1;
    const x = (i) => LEFT + ((at[i] - first) / (last - first || 1)) * (width - LEFT - RIGHT);
    const y = (value) => TOP + (1 - value / high) * (HEIGHT - TOP - BOTTOM);
    for (const tick of ticks) {
      svg(root, "line", { class: "gridline", x1: LEFT, x2: width - RIGHT, y1: y(tick), y2: y(tick) });
      svg(root, "text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, brief(tick));
    }
    const minutes = (last - first) / 60;
    const every = minutes > 4 ? 2 : minutes > 1.5 ? 1 : 0.5;
    for (let ago = every; ago < minutes; ago += every) {
      const place = LEFT + (1 - ago / minutes) * (width - LEFT - RIGHT);
      if (place > LEFT + 20) svg(root, "text", { x: place, y: HEIGHT - 4, "text-anchor": "middle" }, `\u2212${ago} min`);
    }
    svg(root, "text", { x: width - RIGHT, y: HEIGHT - 4, "text-anchor": "end" }, "now");
    if (spec.limit) svg(root, "line", { class: "limit", x1: LEFT, x2: width - RIGHT, y1: y(spec.limit), y2: y(spec.limit) });
    bands.forEach(([bottom, top], s) => {
      const { className } = spec.series[s];
      if (bottom) svg(root, "path", { class: `area ${className}`, d: area(bottom, top, x, y) });
      else svg(root, "path", { class: `curve ${className}`, d: curve(top, x, y) });
    });
    if (pointed !== null && pointed < at.length) {
      svg(root, "line", { class: "pointer", x1: x(pointed), x2: x(pointed), y1: TOP, y2: HEIGHT - BOTTOM });
    }
    key(series, pointed !== null && pointed < at.length ? pointed : at.length - 1);
  }

  function key(series, index) {
    legend.replaceChildren();
    series.forEach((values, s) => {
      const item = make(legend, "li", spec.series[s].className);
      make(item, "i");
      item.append(`${spec.series[s].name} `);
      make(item, "b", "", withUnit(values[index] ?? null, spec.unit));
    });
    if (pointed !== null) make(legend, "li", "", new Date(told.at[index] * 1000).toLocaleTimeString("en-GB"));
  }

  root.addEventListener("pointermove", (event) => {
    if (!told || !told.at.length) return;
    const box = root.getBoundingClientRect();
    const share = (event.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT);
    const { at } = told, wanted = at[0] + share * (at[at.length - 1] - at[0]);
    pointed = at.reduce((best, value, i) => (Math.abs(value - wanted) < Math.abs(at[best] - wanted) ? i : best), 0);
    draw();
  });
  root.addEventListener("pointerleave", () => { pointed = null; draw(); });
  addEventListener("resize", draw);
  return (charts) => {
    const factor = spec.factor ?? 1;
    const scaled = (values) => values.map((v) => (v === null ? null : v * factor));
    told = { at: charts.at, series: spec.of(charts).map(scaled) };
    draw();
  };
}

// Pairs of lower and upper edge, each series upon those before it.
function stack(series) {
  let below = series[0].map(() => 0);
  return series.map((values) => {
    const top = values.map((value, i) => below[i] + (value ?? 0));
    const band = [below, top];
    below = top;
    return band;
  });
}

// A line with gaps where nothing is known; a value alone is a dot.
function curve(values, x, y) {
  let path = "", isDrawing = false;
  values.forEach((value, i) => {
    if (value !== null) path += `${isDrawing ? "L" : "M"}${x(i).toFixed(1)} ${y(value).toFixed(1)}${isDrawing ? "" : "h0"}`;
    isDrawing = value !== null;
  });
  return path;
}

function area(bottom, top, x, y) {
  const point = (values) => (_, i) => `${x(i).toFixed(1)} ${y(values[i]).toFixed(1)}`;
  return `M${[...top.map(point(top)), ...bottom.map(point(bottom)).reverse()].join("L")}Z`;
}

function ticksTo(most) {
  const power = 10 ** Math.floor(Math.log10(most / 2));
  const step = [1, 2, 2.5, 5, 10].find((factor) => factor * power * 3 >= most) * power;
  const ticks = [];
  for (let i = 0; i <= Math.ceil(most / step - 1e-9); i++) ticks.push(+(i * step).toPrecision(6));
  return ticks;
}

// Numbers as people read them: three digits, thousands as k.
function brief(value) {
  if (value === null || value === undefined) return "\u2013";
  if (Math.abs(value) >= 1e6) return `${+(value / 1e6).toPrecision(3)} M`;
  if (Math.abs(value) >= 1e4) return `${+(value / 1e3).toPrecision(3)} k`;
  return `${+value.toPrecision(3)}`;
}

function withUnit(value, unit) {
  return value === null ? "\u2013" : unit ? `${brief(value)} ${unit}` : brief(value);
}
