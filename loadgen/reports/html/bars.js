// Upright bars in groups, and lying bars one below the other.

function drawBars(figure, spec, width) {
  legend(figure, spec.series.map((series) => ({ ...series, isArea: true })));
  const box = frame(figure, spec, width, spec.is_wide ? 230 : 280);
  box.bottom += 14; // groups need no title
  const [, high] = extent(spec.series.flatMap(({ values }) => values.map((value) => value ?? 0)));
  const y = linearScale(spec.y, 0, spec.y.is_share ? 1 : high, box.bottom, box.top + 14, 5);
  drawYAxis({ ...box, top: box.top + 14 }, spec.y, y);
  const step = (box.right - box.left) / spec.groups.length;
  const room = Math.min(step * 0.82, 72 * spec.series.length);
  const each = room / spec.series.length;
  spec.groups.forEach((group, g) => {
    const middle = box.left + (g + 0.5) * step;
    const size = Math.max(8, Math.min(12, step / (0.64 * group.length))); // wide names are written small
    const place = { x: middle, y: box.bottom + 18, "text-anchor": "middle", style: `font-size: ${size}px` };
    svg(box.root, "text", { class: "strong", ...place }, group);
    spec.series.forEach((series, s) => {
      const left = middle - room / 2 + s * each;
      drawBar(box, spec, group, series, series.values[g], y, left, each);
    });
  });
  svg(box.root, "line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom });
}

function drawBar(box, spec, group, series, value, y, left, room) {
  if (value === null) return;
  const top = y.place(value), gap = Math.min(3, room * 0.1);
  const bar = svg(box.root, "rect", {
    class: `bar ${series.colour}`, x: left + gap, width: room - 2 * gap, y: top, rx: 2,
    height: Math.max(0, box.bottom - top),
  });
  const text = asText(spec.y, value) + unitOf(spec.y);
  if (room > 28) {
    const short = spec.y.is_share ? (value * 100).toFixed(value > 0.9995 ? 0 : 1) : text;
    svg(box.root, "text", { class: "strong", x: left + room / 2, y: top - 5, "text-anchor": "middle" }, short);
  }
  hover(bar, group, [{ name: series.name, colour: series.colour, text }]);
}

function hover(element, title, rows) {
  element.addEventListener("pointermove", (event) => showTip(event, title, rows));
  element.addEventListener("pointerleave", hideTip);
}

function drawRanking(figure, spec, width) {
  const rowHeight = 34, height = TOP + BOTTOM + rowHeight * spec.bars.length;
  const box = frame(figure, spec, width, height);
  const longest = Math.max(...spec.bars.map(({ name }) => name.length));
  box.left = Math.min(24 + longest * 7.5, width / 3);
  box.right = width - 70;
  const [, high] = extent(spec.bars.map((bar) => bar.up_to ?? bar.value));
  const x = linearScale(spec.x, 0, high, box.left, box.right, (box.right - box.left) / 64);
  for (const tick of x.ticks) {
    const at = x.place(tick);
    svg(box.root, "line", { class: "gridline", x1: at, x2: at, y1: box.top, y2: box.bottom });
  }
  drawXAxis(box, spec.x, x);
  spec.bars.forEach((bar, i) => drawLyingBar(box, spec, bar, x, TOP + i * rowHeight + 5, rowHeight - 10));
}

function drawLyingBar(box, spec, bar, x, top, height) {
  const middle = top + height / 2, end = x.place(bar.value);
  svg(box.root, "text", { class: "strong", x: box.left - 8, y: middle + 4, "text-anchor": "end" }, bar.name);
  const drawn = svg(box.root, "rect", {
    class: `bar ${bar.colour}`, x: box.left, y: top, width: end - box.left, height, rx: 2,
  });
  const far = x.place(bar.up_to ?? bar.value);
  if (bar.up_to !== null) svg(box.root, "line", { class: `whisker ${bar.colour}`, x1: end, x2: far, y1: middle, y2: middle });
  svg(box.root, "text", { class: "strong", x: far + 8, y: middle + 4 }, asText(spec.x, bar.value));
  const rows = [{ name: "value", colour: bar.colour, text: asText(spec.x, bar.value) + unitOf(spec.x) }];
  if (bar.up_to !== null) rows.push({ name: "at most", colour: "muted", text: asText(spec.x, bar.up_to) + unitOf(spec.x) });
  hover(drawn, bar.name, rows);
}
