// Draws every chart of the page, again when the width changes; shows those of the chosen load.
// A figure that is drawn is marked `data-drawn`, a page whose charts all are, `data-ready`.

const DRAW = { curves: drawCurves, bars: drawBars, ranking: drawRanking };
const charts = JSON.parse(document.getElementById("charts").textContent);
const sections = [...document.querySelectorAll("section.charts")];

function drawAll() {
  groups.clear();
  sections.forEach((section, i) => drawSection(section, charts[i]));
  document.documentElement.dataset.ready = "yes";
}

function drawSection(section, specs) {
  const wasHidden = section.hidden;
  section.hidden = false; // a hidden one has no width
  const grid = section.querySelector(".grid");
  grid.replaceChildren();
  const num = specs.filter((spec) => spec.kind !== "absent" && !spec.is_wide).length;
  grid.classList.toggle("thirds", num % 3 === 0);
  const figures = specs.map((spec) => place(grid, spec));
  specs.forEach((spec, i) => {
    if (spec.kind === "absent") return;
    DRAW[spec.kind](figures[i], spec, Math.max(280, figures[i].clientWidth - 34));
    figures[i].dataset.drawn = "yes";
  });
  section.hidden = wasHidden;
}

function place(grid, spec) {
  if (spec.kind === "absent") {
    const absent = html(grid, "p", "absent");
    html(absent, "strong", "", `${spec.title}: `);
    absent.append(spec.reason);
    return absent;
  }
  const figure = html(grid, "figure", spec.is_wide ? "wide" : "");
  html(figure, "figcaption", "", spec.title);
  if (spec.note) html(figure, "p", "note", spec.note);
  return figure;
}

function choose() {
  const chosen = document.querySelector("input[name=load]:checked");
  if (!chosen) return;
  for (const section of sections) {
    section.hidden = Boolean(section.dataset.choice) && section.dataset.choice !== chosen.value;
  }
}

for (const input of document.querySelectorAll("input[name=load]")) input.addEventListener("change", choose);
let drawnWidth = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === drawnWidth) return; // a phone's address bar changes the height
  drawnWidth = innerWidth;
  drawAll();
});
drawAll();
choose();
