// What is under the pointer: a line across every chart of the same group, and a box with the values.

const tip = document.getElementById("tip");
const groups = new Map(); // name of a group to the functions that show an x

function showTip(event, title, rows) {
  tip.replaceChildren();
  html(tip, "b", "", title);
  for (const { name, colour, text } of rows) {
    const row = html(tip, "div");
    const label = html(row, "span");
    html(label, "i", colour);
    label.append(name);
    html(row, "span", "", text);
  }
  tip.hidden = false;
  const isLeft = event.clientX > innerWidth - tip.offsetWidth - 24;
  const isAbove = event.clientY > innerHeight - tip.offsetHeight - 24;
  tip.style.left = `${isLeft ? event.clientX - tip.offsetWidth - 14 : event.clientX + 14}px`;
  tip.style.top = `${isAbove ? event.clientY - tip.offsetHeight - 14 : event.clientY + 14}px`;
}

function hideTip() {
  tip.hidden = true;
}

function followPointer(figure, spec, box, x) {
  const line = svg(box.root, "line", { class: "pointer", y1: box.top, y2: box.bottom, visibility: "hidden" });
  const show = (at) => {
    const isIn = at !== null && x.place(at) >= box.left - 1 && x.place(at) <= box.right + 1;
    line.setAttribute("visibility", isIn ? "visible" : "hidden");
    if (isIn) { line.setAttribute("x1", x.place(at)); line.setAttribute("x2", x.place(at)); }
  };
  const name = spec.group || figure;
  groups.set(name, [...(groups.get(name) ?? []), show]);
  const target = svg(box.root, "rect", {
    x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top,
    fill: "transparent",
  });
  target.addEventListener("pointermove", (event) => {
    const area = target.getBoundingClientRect();
    const share = (event.clientX - area.left) / area.width;
    const at = snapped(spec, x.value(box.left + share * (box.right - box.left)));
    for (const each of groups.get(name)) each(at);
    showTip(event, `${axisName(spec.x)} ${asText(spec.x, at)}${unitOf(spec.x)}`, rowsAt(spec, at));
  });
  target.addEventListener("pointerleave", () => {
    for (const each of groups.get(name)) each(null);
    hideTip();
  });
}

function axisName(axis) {
  return axis.label.replace(/\s*\([^)]*\)\s*$/, "");
}

// To the nearest point where only points mean something.
function snapped(spec, at) {
  if (spec.draw !== "line") return at;
  const all = spec.lines.flatMap((line) => line.points.map(([x]) => x));
  return all.reduce((best, x) => (Math.abs(x - at) < Math.abs(best - at) ? x : best), all[0]);
}

function rowsAt(spec, at) {
  const near = spec.draw === "line" ? nearest : held;
  return spec.lines.flatMap(({ name, colour, points }) => {
    const value = near(points, at);
    return value === null ? [] : [{ name, colour, text: `${asText(spec.y, value)}${unitOf(spec.y)}` }];
  });
}

// Runs of one load differ a little in it.
function nearest(points, at) {
  const found = points.find(([x]) => Math.abs(x - at) <= Math.abs(at) * 0.02);
  return found ? found[1] : null;
}

// The last point at or before it.
function held(points, at) {
  let low = 0, high = points.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] <= at) low = middle + 1;
    else high = middle;
  }
  return low ? points[low - 1][1] : null;
}
