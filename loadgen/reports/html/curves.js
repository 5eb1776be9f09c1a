// Lines over a common x: joined points, steps, stacked areas.

function drawCurves(figure, spec, width) {
  const isStack = spec.draw === "stack";
  const lines = isStack ? stacked(spec.lines) : spec.lines;
  legend(figure, spec.lines.map((line) => ({ ...line, isArea: isStack })));
  const box = frame(figure, spec, width, spec.is_wide && spec.draw !== "line" ? 210 : 280);
  const x = xScale(spec, lines, box);
  const y = yScale(spec, lines, box);
  drawYAxis(box, spec.y, y);
  drawXAxis(box, spec.x, x);
  for (const line of lines) {
    const isDistribution = spec.draw === "step" && spec.y.is_share;
    if (isStack) drawArea(box, line, x, y);
    else drawLine(box, line, x, y, spec.draw, isDistribution);
  }
  spec.marks.forEach((mark, i) => drawMark(box, mark, x, y, i));
  followPointer(figure, spec, box, x);
}

// Each point gets where its area begins.
function stacked(lines) {
  let below = lines[0].points.map(() => 0);
  return lines.map((line) => {
    const points = line.points.map(([at, value], i) => [at, below[i] + value, below[i]]);
    below = points.map(([, top]) => top);
    return { ...line, points };
  });
}

function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
}

function values(spec, lines, which, ofMark) {
  const marks = spec.marks.map((mark) => mark[ofMark]).filter((at) => at !== null);
  return lines.flatMap((line) => line.points.map((point) => point[which])).concat(marks);
}

function xScale(spec, lines, box) {
  const all = values(spec, lines, 0, "x"), room = (box.right - box.left) / 64;
  if (spec.x.is_log) {
    const [low, high] = extent(all.filter((value) => value > 0));
    return logScale(Math.max(low / 1.05, high / 1e5), high * 1.05, box.left, box.right, room);
  }
  const [, high] = extent(all);
  const made = linearScale(spec.x, 0, high, box.left, box.right, room);
  return spec.draw === "line" ? made : untilTheEnd(made, high, box);
}

// Time ends where the data end, not at a round number.
function untilTheEnd(made, high, box) {
  const width = box.right - box.left;
  const ticks = made.ticks.filter((tick) => tick <= high);
  const place = (value) => box.left + (value / high) * width;
  const value = (pixel) => ((pixel - box.left) / width) * high;
  return { ...made, ticks, place, value, high };
}

function yScale(spec, lines, box) {
  const all = values(spec, lines, 1, "y"), room = (box.bottom - box.top) / 34;
  if (spec.y.is_log) {
    const [low, high] = extent(all.filter((value) => value > 0));
    return logScale(low / 1.25, high * 1.25, box.bottom, box.top, room);
  }
  if (spec.y.is_share && spec.draw === "step") return linearScale(spec.y, 0, 1, box.bottom, box.top, 5);
  const [, high] = extent(all);
  const most = spec.y.is_share ? Math.min(1, Math.max(high, 0.02)) : high || 1;
  return linearScale(spec.y, 0, most, box.bottom, box.top, room);
}

function drawLine(box, line, x, y, draw, isDistribution) {
  const parts = line.points.map(([at, value], i) => {
    const px = x.place(at).toFixed(1), py = y.place(value).toFixed(1);
    if (!i) return `M${px} ${py}`;
    return draw === "step" ? `H${px}V${py}` : `L${px} ${py}`;
  });
  // A distribution stays at its last share: what is missing from 100 % never came.
  if (isDistribution) parts.push(`H${box.right}`);
  const className = `line ${line.colour}${line.dashed ? " dashed" : ""}`;
  svg(box.root, "path", { class: className, d: parts.join("") });
  if (draw !== "line" || line.points.length > 40) return;
  for (const [at, value] of line.points) {
    svg(box.root, "circle", { class: `dot ${line.colour}`, cx: x.place(at), cy: y.place(value), r: 3.5 });
  }
}

function drawArea(box, line, x, y) {
  const over = [], back = [];
  line.points.forEach(([at, top, bottom], i) => {
    const px = x.place(at).toFixed(1);
    over.push(i ? `H${px}V${y.place(top).toFixed(1)}` : `M${px} ${y.place(top).toFixed(1)}`);
    back.unshift(`V${y.place(bottom).toFixed(1)}H${px}`);
  });
  svg(box.root, "path", { class: `area ${line.colour}`, d: `${over.join("")}${back.join("")}Z` });
}

function drawMark(box, mark, x, y, index) {
  const isUpright = mark.x !== null;
  const at = isUpright ? x.place(mark.x) : y.place(mark.y);
  const ends = isUpright
    ? { x1: at, x2: at, y1: box.top, y2: box.bottom }
    : { x1: box.left, x2: box.right, y1: at, y2: at };
  svg(box.root, "line", { class: `mark ${mark.colour}`, ...ends });
  // A label stands on the side where there is more room; several do not cover each other.
  const isRight = isUpright && at > (box.left + box.right) / 2;
  const place = isUpright
    ? { x: at + (isRight ? -6 : 6), y: box.bottom - 8 - 15 * index, "text-anchor": isRight ? "end" : "start" }
    : { x: box.left + 6, y: at - 5, "text-anchor": "start" };
  svg(box.root, "text", { class: `own ${mark.colour}`, ...place }, mark.label);
}
