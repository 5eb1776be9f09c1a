// Reads status.json every other second and shows it. Whatever callers chose (ids, tenants, tiers) is
// written as text, never as markup.

const POLL_MS = 2000, PATIENCE_MS = 5000;
const at = (id) => document.getElementById(id);
const STATES = [["running", "running"], ["waiting", "waiting"], ["relegated", "relegated"], ["best_effort", "best effort"]];
const COLOURS = { ok: "#1d8a70", warn: "#c77f14", bad: "#d55e00", down: "#b3122d", wait: "#808080" };
const TOKEN = "niyama-token";
let answeredAt = null, kind = "all", asked = "", last = null;

// Numbers

const share = (value) => (value === null || value === undefined ? "\u2013" : `${+(100 * value).toPrecision(value >= 0.9995 || value < 0.1 ? 2 : 3)} %`);

function seconds(value) {
  if (value === null || value === undefined) return "\u2013";
  if (value >= 3600) return `${brief(value / 3600)} h`;
  if (value >= 120) return `${brief(value / 60)} min`;
  if (value >= 1) return `${brief(value)} s`;
  return value ? `${brief(1000 * value)} ms` : "0 s";
}

const clockOf = (ms) => new Date(ms).toLocaleTimeString("en-GB");
const count = (value) => (value === null || value === undefined ? "\u2013" : Math.round(value).toLocaleString("en"));

function ago(instant, now) {
  const s = Math.max(0, now - instant);
  return s < 90 ? `${Math.round(s)} s ago` : s < 5400 ? `${Math.round(s / 60)} min ago` : `${Math.round(s / 3600)} h ago`;
}

// The state

function showState(findings, isStale = false) {
  const state = at("state");
  const text = JSON.stringify(findings);
  if (state.dataset.told === text) return; // else a screen reader says it again
  state.dataset.told = text;
  state.dataset.level = findings[0].level;
  state.replaceChildren();
  for (const { level, line, detail, do: advice } of findings) {
    const box = make(state, "div", "finding");
    box.dataset.level = level;
    make(box, "p", "line", line);
    if (detail) make(box, "p", "detail", detail);
    if (advice) make(box, "p", "do", advice);
  }
  document.title = `${findings[0].line} \u00b7 Niyama`;
  const dot = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><circle cx="8" cy="8" r="8" fill="${COLOURS[findings[0].level]}"/></svg>`;
  at("icon").href = `data:image/svg+xml,${encodeURIComponent(dot)}`;
  at("told").classList.toggle("stale", isStale);
}

function tile(what, value, detail, level = "") {
  const item = make(at("tiles"), "li");
  item.dataset.level = level;
  make(item, "span", "what", what);
  make(item, "span", "value", value);
  make(item, "span", "detail", detail);
}

function showTiles(load) {
  at("tiles").replaceChildren();
  tile("Engine busy", share(load.utilization), "of the time");
  tile("Demand", brief(load.demand_ratio), "s of work arrive per second", load.demand_ratio > 1 ? "bad" : "");
  tile("Machine speed", share(load.speed_ratio), "of its calibration", load.speed_ratio !== null && load.speed_ratio < load.slow_below ? "bad" : "");
  tile("Iterations take", withUnit(load.actual_over_predicted, "\u00d7"), "the predicted time", load.actual_over_predicted > 1.25 ? "warn" : "");
  tile("Requests in hand", count(load.requests), `of at most ${count(load.most_requests)}`, load.requests >= 0.9 * load.most_requests && load.most_requests ? "warn" : "");
  tile("KV memory", share(load.kv_usage), "in use", load.kv_usage > 0.95 ? "warn" : "");
  tile("Arrivals", withUnit(load.arrivals_per_s, "/s"), `${brief(load.output_tokens_per_s)} tokens/s out`);
}

// Tables

function head(table, names) {
  table.replaceChildren();
  const row = make(make(table, "thead"), "tr");
  for (const name of names) make(row, "th", name.startsWith("and") ? "text" : "", name).scope = "col";
  return make(table, "tbody");
}

function row(body, name, below = "") {
  const made = make(body, "tr");
  const first = make(made, "th", "", name);
  first.scope = "row";
  if (below) make(first, "span", "small", below);
  return made;
}

function cell(parent, text, below = "", className = "") {
  const made = make(parent, "td", className, text);
  const header = parent.closest("table").tHead.rows[0];
  made.dataset.column = header.cells[made.cellIndex]?.textContent ?? "";
  if (below) make(made, "span", "small", below);
  return made;
}

function meter(parent, value, className) {
  if (value === null || value === undefined) return;
  const bar = make(parent, "span", `meter ${className}`);
  make(bar, "i").style.width = `${100 * Math.min(1, value)}%`;
}

function scoreCell(parent, score) {
  const { attainment, judged, missed } = score;
  if (!judged) return cell(parent, "\u2013", "nobody", "none");
  const made = cell(parent, `${share(attainment)} on time`, "", attainment < 0.99 ? "worse" : "");
  make(made, "span", "small", `${judged - missed} of ${judged}`);
  meter(made, attainment, "good missed");
  return made;
}

const NAMES = { ttft: "TTFT", tbt: "TBT", ttlt: "TTLT" };
const targetsOf = (targets) => Object.keys(NAMES).filter((t) => t in targets).map((t) => `${NAMES[t]} ${seconds(targets[t])}`).join(", ");
const MISSES = ["late", "expired", "refused", "failed", "cancelled", "best_effort"];
const resultsOf = (results) => MISSES.filter((r) => results[r]).map((r) => `${results[r]} ${r.replace("_", " ")}`).join(", ");

function showTiers(tiers) {
  const body = head(at("tiers"), ["", "last 5 minutes", "headroom", "since the start", "and of the others, last 5 minutes"]);
  for (const tier of tiers) {
    const made = row(body, tier.name, targetsOf(tier.targets));
    scoreCell(made, tier.recent);
    const late = tier.headroom_s === 0;
    const chance = tier.late_chance === null ? "" : `late with ${share(tier.late_chance)}`;
    cell(made, late ? "0 s: late now" : seconds(tier.headroom_s), chance, late ? "worse" : "");
    scoreCell(made, tier.since_start);
    const misses = resultsOf(tier.recent.results);
    cell(made, misses || "\u2013", "", misses ? "text" : "none");
  }
}

function showQueue(tiers, load) {
  const body = head(at("queue"), ["", ...STATES.map(([, name]) => name)]);
  const fill = (made, queued, counts) => {
    for (const [state] of STATES) {
      const isHigh = state === "relegated" && counts[state] > 0;
      cell(made, seconds(queued[state]), counts[state] ? `${count(counts[state])} request${counts[state] === 1 ? "" : "s"}` : "", isHigh ? "worse" : queued[state] ? "" : "none");
    }
  };
  const all = {};
  for (const tier of tiers) {
    for (const [state] of STATES) all[state] = (all[state] ?? 0) + (tier.sequences[state] ?? 0);
    fill(row(body, tier.name), tier.queued_s, tier.sequences);
  }
  const sum = row(body, "all");
  sum.className = "all";
  fill(sum, load.queued_s, all);
  at("limits").textContent = `${count(load.requests)} of at most ${count(load.most_requests)} requests and ${count(load.queued_tokens)} of at most ${count(load.most_queued_tokens)} waiting tokens are in hand.`;
}

function showTenants(tenants) {
  const body = head(at("tenants"), ["", "share of the work", "last 5 minutes", "and of the others"]);
  for (const tenant of tenants) {
    const made = row(body, tenant.name);
    meter(cell(made, share(tenant.work_share)), tenant.work_share, "c3");
    scoreCell(made, tenant.recent);
    const misses = resultsOf(tenant.recent.results);
    cell(made, misses || "\u2013", "", misses ? "text" : "none");
  }
  if (!tenants.length) cell(row(body, "nobody yet"), "");
}

// Charts

const charts = [
  chart(at("charts"), {
    title: "Calls ended", about: "per second", unit: "/s", stacked: true,
    series: [{ name: "on time", className: "c0" }, { name: "missed", className: "c1" }, { name: "best effort, cancelled", className: "muted" }],
    of: (c) => [c.ended_per_s.on_time, c.ended_per_s.missed, c.ended_per_s.best_effort],
  }),
  chart(at("charts"), {
    title: "Queue", about: "seconds of work, by state", unit: "s", stacked: true,
    series: [{ name: "running", className: "c2" }, { name: "waiting", className: "c0" }, { name: "relegated", className: "c1" }, { name: "best effort", className: "muted" }],
    of: (c) => STATES.map(([state]) => c.queued_s[state]),
  }),
  chart(at("charts"), {
    title: "Iteration", about: "mean, predicted and actual", unit: "ms", factor: 1000,
    series: [{ name: "actual", className: "c1" }, { name: "predicted", className: "c0 dashed" }],
    of: (c) => [c.iteration_s, c.predicted_s],
  }),
  chart(at("charts"), {
    title: "Chunk", about: "prompt tokens, mean", unit: "tokens",
    series: [{ name: "chunk", className: "c2" }],
    of: (c) => [c.chunk_tokens],
  }),
  chart(at("charts"), {
    title: "Machine speed", about: "of its calibration (dashed: as calibrated)", unit: "%", factor: 100, limit: 100,
    series: [{ name: "speed", className: "c3" }],
    of: (c) => [c.speed_ratio],
  }),
  chart(at("charts"), {
    title: "Demand", about: "work that arrives (dashed: all that the engine can do)", unit: "s/s", limit: 1,
    series: [{ name: "demand", className: "c3" }],
    of: (c) => [c.demand_ratio],
  }),
];

// Decisions

const KINDS = ["late", "relegated", "refused", "expired", "failed", "preempted"];

function showDecisions(told, now) {
  const found = told.decisions;
  const kinds = at("kinds");
  kinds.replaceChildren();
  at("decisions").replaceChildren();
  if (!found) {
    at("age").textContent = told.explain.needs_token ? "With the operator's token (above), what befell single requests is here." : told.explain.why_not;
    return;
  }
  at("age").textContent = told.decisions_age_s > 10 && told.decisions_age_s < 1e6 ? `As the engine told it ${Math.round(told.decisions_age_s)} s ago.` : "";
  for (const name of ["all", ...KINDS]) {
    const n = name === "all" ? found.length : found.filter((each) => each.kind === name).length;
    const button = make(kinds, "button", "", `${name} ${n}`);
    button.type = "button";
    button.setAttribute("aria-pressed", name === kind);
    button.addEventListener("click", () => { kind = name; showDecisions(last, last.at); });
  }
  const shown = found.filter((each) => kind === "all" || each.kind === kind).slice(0, kind === "all" ? 20 : 100);
  for (const each of shown) {
    const item = make(at("decisions"), "li");
    make(item, "span", `kind ${each.kind === "preempted" ? "" : "worse"}`, each.kind);
    const when = make(item, "time", "", ago(each.at, now));
    when.title = new Date(each.at * 1000).toLocaleString();
    const link = make(item, "a", "id", each.request_id);
    link.href = hashOf(each.request_id, each.tenant);
    make(item, "span", "who", [each.tier, each.tenant && `tenant ${each.tenant}`, each.importance !== "normal" && `${each.importance} importance`].filter(Boolean).join(" \u00b7 "));
    make(item, "span", "why", each.detail);
  }
  if (!found.length) at("age").textContent = "Nothing has happened that would have to be told.";
}

// Explain

const form = at("ask");
form.elements.token.value = sessionStorage.getItem(TOKEN) ?? "";
const bearer = () => (form.elements.token.value ? { Authorization: `Bearer ${form.elements.token.value.trim()}` } : {});

function hashOf(id, tenant) {
  const query = new URLSearchParams({ request_id: id });
  if (tenant !== null) query.set("tenant", tenant);
  return `#${query}`;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const { request_id, tenant } = form.elements;
  const hash = hashOf(request_id.value, tenant.value || null);
  if (location.hash === hash) explain();
  else location.hash = hash;
});
form.elements.token.addEventListener("input", () => sessionStorage.setItem(TOKEN, form.elements.token.value));
addEventListener("hashchange", explain);

async function explain() {
  const query = new URLSearchParams(location.hash.slice(1));
  if (!query.get("request_id")) return;
  form.elements.request_id.value = query.get("request_id");
  form.elements.tenant.value = query.get("tenant") ?? "";
  at("asking").scrollIntoView({ block: "nearest" });
  const mine = (asked = query.toString());
  let told;
  try {
    const answer = await fetch(`explain?${query}`, { headers: bearer(), cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
    told = await answer.json();
  } catch (error) {
    told = { error: `the server does not answer (${error.message})` };
  }
  if (mine === asked) showStory(told);
}

function showStory(story) {
  const box = at("story");
  box.replaceChildren();
  if (story.error) return void make(box, "p", "summary failed", story.error);
  make(box, "p", "summary", `${story.request_id}: ${story.summary}`);
  const { request_id, summary, decisions = [], ...rest } = story;
  if (Object.keys(rest).length) make(box, "p", "note", listed(rest));
  const scroll = make(box, "div", "scroll");
  scroll.tabIndex = 0;
  const body = head(make(scroll, "table"), ["after", "what", "why", "predicted", "figures"]);
  for (const each of decisions) {
    const made = row(body, duration(each.at ?? "0s"));
    cell(made, each.kind);
    const { at: _, kind: __, detail = "", predicted_at, values = {}, ...others } = each;
    cell(made, detail, "", "text");
    cell(made, predicted_at ? duration(predicted_at) : "");
    cell(made, listed({ ...values, ...others }), "", "text");
  }
}

const duration = (text) => seconds(parseFloat(text));

// What a name ends in says its unit; nested values are told within parentheses.
function listed(values) {
  return Object.entries(values).map(([name, value]) => {
    if (Array.isArray(value)) return `${name.replaceAll("_", " ")}: ${value.map((each) => (each !== null && typeof each === "object" ? `(${listed(each)})` : each)).join(", ")}`;
    if (value !== null && typeof value === "object") return `${name.replaceAll("_", " ")} (${listed(value)})`;
    if (typeof value === "string" && /^-?[\d.]+s$/.test(value)) return `${name.replaceAll("_", " ")} ${duration(value)}`;
    if (typeof value === "number" && name.endsWith("_s")) return `${name.slice(0, -2).replaceAll("_", " ")} ${value < 0 ? "\u2212" : ""}${seconds(Math.abs(value))}`;
    return `${name.replaceAll("_", " ")} ${typeof value === "number" ? brief(value) : value}`;
  }).join(", ");
}

// Polling

function show(told) {
  const { config } = told;
  at("told").hidden = false;
  at("about").textContent = [config.model, location.host].filter(Boolean).join(" on ");
  at("served").textContent = [config.version && `Niyama ${config.version}`, config.policy && `policy ${config.policy}`, config.device && `${config.device} ${config.dtype ?? ""}`, `up ${seconds(told.uptime_s)}`].filter(Boolean).join(" \u00b7 ");
  at("token").hidden = !told.explain.needs_token;
  showTiles(told.load);
  showTiers(told.tiers);
  showQueue(told.tiers, told.load);
  showTenants(told.tenants);
  showDecisions(told, told.at);
  charts.forEach((draw) => draw(told.charts));
}

function showClock() {
  const now = Date.now();
  if (answeredAt !== null) at("clock").textContent = `as of ${clockOf(answeredAt)}`;
  if (answeredAt === null || now - answeredAt > 3 * POLL_MS + PATIENCE_MS) {
    const since = answeredAt === null ? "" : ` since ${clockOf(answeredAt)}`;
    return `the server does not answer${since}`;
  }
  return "";
}

async function poll() {
  try {
    const answer = await fetch("status.json", { headers: bearer(), cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
    if (!answer.ok) throw new Error((await answer.text()).trim());
    last = await answer.json();
    answeredAt = Date.now();
    showState(last.findings);
    show(last);
    showClock();
  } catch (error) {
    const line = showClock() || (last === null ? "the server does not answer" : "");
    if (line) showState([{ level: "down", line, detail: `${error.message}. What is shown below is what it said last.`, do: "Is its process alive? Its log says why it ended; a machine that swaps answers late." }], true);
  } finally {
    setTimeout(poll, POLL_MS);
  }
}

poll();
explain();
