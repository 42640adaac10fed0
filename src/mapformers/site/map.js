"use strict";
(() => {
  const at = (id) => document.getElementById(id);
  const data = JSON.parse(at("data").textContent);
  const places = new Map(data.places.map((one) => [one.name, one]));
  const regions = new Map(data.regions.map((one, i) => [one.name, i]));
  const NS = "http://www.w3.org/2000/svg";
  const svgPart = (kind, fields, parent, text) => { const e = document.createElementNS(NS, kind); for (const k in fields) e.setAttribute(k, fields[k]); if (text !== undefined) e.textContent = text; if (parent) parent.append(e); return e; };
  const element = (kind, text, type) => { const e = document.createElement(kind); if (text !== undefined) e.textContent = text; if (type) e.className = type; return e; };
  const comma = (x) => x.toLocaleString("en", { maximumFractionDigits: 0 });
  const times = (x) => (x >= 1 ? `${x.toFixed(1)}x faster` : `${(1 / x).toFixed(1)}x slower`);
  const plural = { mechanism: "mechanism", score: "score term", project: "projection", merge: "merge of heads", block: "block", loss: "loss of heads", model: "model" };
  const state = { place: "", measure: "proven", compared: [], view: "map" };

  // The map.
  const map = at("map"), whole = [-14, -14, data.width + 28, data.height + 28];
  let box = [...whole];
  const setBox = (next) => { box = next; map.setAttribute("viewBox", box.map((v) => v.toFixed(1)).join(" ")); };
  const dots = new Map(), curves = [];
  const region = (r, i) => {
    svgPart("rect", { class: "region", x: r.x, y: r.y, width: r.width, height: r.height, rx: 22, fill: `var(--r${i % 9})` }, map);
    svgPart("text", { class: "title", x: r.x + 18, y: r.y + 30 }, map, r.name[0].toUpperCase() + r.name.slice(1));
  };
  data.regions.forEach(region);
  for (const line of data.lines) {
    const a = places.get(line.parent), b = places.get(line.child), bend = Math.max(24, Math.abs(a.x - b.x) / 3);
    const path = svgPart("path", { class: line.parent === "full" ? "derives base" : "derives", d: `M${a.x},${a.y} C${a.x - bend},${a.y + (b.y - a.y) / 4} ${b.x - bend},${b.y - (b.y - a.y) / 4} ${b.x},${b.y}` }, map);
    svgPart("title", {}, path, `${line.child} from ${line.parent}: ${line.why}`);
    curves.push({ ...line, path });
  }
  for (const one of data.places) {
    const group = svgPart("g", { class: "place", tabindex: 0, role: "button", "data-name": one.name }, map);
    svgPart("circle", { class: "ring", cx: one.x, cy: one.y, r: 15 }, group);
    const dot = svgPart("circle", { class: "dot", cx: one.x, cy: one.y, r: 7 }, group);
    const tick = svgPart("path", { class: "tick", d: `M${one.x - 3.2},${one.y} l2.4,2.6 l4.4,-5` }, group);
    svgPart("text", { x: one.x + 18, y: one.y + 5 }, group, one.name);
    const figure = svgPart("text", { class: "figure", x: one.x + 18, y: one.y + 21 }, group, "");
    dots.set(one.name, { group, dot, tick, figure });
    group.addEventListener("click", () => go(one.name));
    group.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); go(one.name, true); } });
  }
  const LEGENDS = {
    proven: "filled: all checks of the public audit pass; hollow: not audited yet",
    faster: `larger: faster than full attention at ${comma(data.at)} tokens; hollow: not measured`,
    memory: `larger: more memory for a pass of ${comma(data.at)} tokens; hollow: not measured`,
    recall: "larger: more right answers in associative recall; hollow: not measured",
  };
  const paintDots = () => {
    at("legend").textContent = LEGENDS[state.measure];
    for (const one of data.places) {
      const { group, dot, tick, figure } = dots.get(one.name), value = state.measure === "proven" ? (one.audit ? one.audit.passed : null) : one[state.measure];
      let radius = 7, said = "";
      if (state.measure === "proven") said = value === null ? "" : value ? "proven" : "a check failed";
      else if (value !== null) {
        if (state.measure === "faster") { radius = Math.max(3, Math.min(12, 5 + 1.4 * Math.log2(value))); said = times(value); }
        if (state.measure === "memory") { radius = Math.max(3, Math.min(12, 1.3 * Math.log2(value))); said = `${comma(value)} MB`; }
        if (state.measure === "recall") { radius = 3 + 9 * value; said = value.toFixed(2); }
      }
      dot.setAttribute("r", radius.toFixed(1));
      dot.setAttribute("class", "dot" + (value === null ? "" : value === false ? " bad" : " full"));
      tick.style.display = state.measure === "proven" && value ? "" : "none";
      figure.textContent = state.measure === "proven" ? "" : said;
      group.setAttribute("aria-label", `${one.name}, ${plural[one.card.kind]}, ${one.region}${said ? ", " + said : ""}`);
      group.setAttribute("aria-current", String(one.name === state.place));
    }
    map.classList.toggle("focus", Boolean(state.place));
    for (const line of curves) line.path.classList.toggle("near", line.child === state.place || line.parent === state.place);
  };

  // Moving about.
  const zoom = (factor, x, y) => {
    const width = Math.max(200, Math.min(whole[2], box[2] * factor)), f = width / box[2];
    const cx = x ?? box[0] + box[2] / 2, cy = y ?? box[1] + box[3] / 2;
    setBox([cx - (cx - box[0]) * f, cy - (cy - box[1]) * f, width, box[3] * f]);
  };
  const point = (event) => { const r = map.getBoundingClientRect(); return [box[0] + ((event.clientX - r.left) / r.width) * box[2], box[1] + ((event.clientY - r.top) / r.height) * box[3]]; };
  at("closer").addEventListener("click", () => zoom(0.75));
  at("farther").addEventListener("click", () => zoom(1 / 0.75));
  at("all").addEventListener("click", () => setBox([...whole]));
  map.addEventListener("wheel", (event) => { if (!event.ctrlKey && !event.metaKey && !event.altKey) return; event.preventDefault(); zoom(event.deltaY > 0 ? 1.15 : 0.87, ...point(event)); }, { passive: false });
  let drag = null;
  map.addEventListener("pointerdown", (event) => { drag = { x: event.clientX, y: event.clientY, box: [...box] }; });
  window.addEventListener("pointermove", (event) => {
    if (!drag || event.pointerType === "touch") return;
    const r = map.getBoundingClientRect();
    setBox([drag.box[0] - ((event.clientX - drag.x) / r.width) * box[2], drag.box[1] - ((event.clientY - drag.y) / r.height) * box[3], box[2], box[3]]);
  });
  window.addEventListener("pointerup", () => { drag = null; });

  // The card.
  const chart = (series, withSdpa) => {
    const known = series.filter((one) => one.curve.length > 1);
    if (!known.length) return null;
    const xs = known.flatMap((one) => one.curve.map((p) => p.n)), ys = known.flatMap((one) => one.curve.flatMap((p) => (withSdpa ? [p.ms, p.sdpa] : [p.ms])));
    const low = [Math.log(Math.min(...xs)), Math.log(Math.min(...ys))], high = [Math.log(Math.max(...xs)), Math.log(Math.max(...ys))];
    const x = (n) => 52 + (290 * (Math.log(n) - low[0])) / (high[0] - low[0] || 1), y = (ms) => 150 - (130 * (Math.log(ms) - low[1])) / (high[1] - low[1] || 1);
    const svg = svgPart("svg", { class: "chart", viewBox: "0 0 420 190", role: "img", "aria-label": `Milliseconds of a forward and backward by tokens: ${known.map((one) => one.name).join(", ")}` });
    svgPart("line", { class: "axis", x1: 48, x2: 350, y1: 154, y2: 154 }, svg);
    for (const n of [...new Set(xs)]) svgPart("text", { x: x(n), y: 171, "text-anchor": "middle" }, svg, comma(n));
    for (const ms of [Math.min(...ys), Math.max(...ys)]) svgPart("text", { x: 46, y: y(ms) + 4, "text-anchor": "end" }, svg, ms >= 10 ? comma(ms) : ms.toFixed(1));
    svgPart("text", { x: 200, y: 187, "text-anchor": "middle" }, svg, "tokens; ms of forward and backward");
    const draw = (curve, of, type, name) => { svgPart("polyline", { class: type, points: curve.map((p) => `${x(p.n).toFixed(1)},${y(p[of]).toFixed(1)}`).join(" "), fill: "none" }, svg); const last = curve[curve.length - 1]; svgPart("text", { x: x(last.n) + 5, y: y(last[of]) + 4 }, svg, name); };
    known.forEach((one, i) => draw(one.curve, "ms", withSdpa ? "own" : `own s${i % 4}`, one.name.slice(0, 11)));
    if (withSdpa) draw(known[0].curve, "sdpa", "other", "full");
    return svg;
  };
  const source = (name) => { const s = data.sources[name]; return s === null ? "" : `${s.date}, ${s.machine}: ${s.command}`; };
  const table = (head, rows) => { const t = element("table"), h = element("tr"); for (const name of head) { const th = element("th", name); th.scope = "col"; h.append(th); } t.append(h); for (const row of rows) { const tr = element("tr"); for (const cell of row) tr.append(element("td", cell)); t.append(tr); } return t; };
  const section = (parent, title, ...parts) => { parent.append(element("h3", title)); parent.append(...parts); };
  const formula = (parts) => { const p = element("p", undefined, "formula"); for (const [kind, text] of parts) p.append(kind === "plain" ? text : element(kind, text)); return p; };
  const paper = (text) => { const p = element("p"), match = /arXiv (\d{4}\.\d{4,5})/.exec(text); if (!match) { p.textContent = text; return p; } const a = element("a", match[0]); a.href = `https://arxiv.org/abs/${match[1]}`; p.append(text.slice(0, match.index), a, text.slice(match.index + match[0].length)); return p; };
  const copyable = (text) => { const pre = element("pre", text), button = element("button", "copy"); button.type = "button"; button.addEventListener("click", async () => { try { await navigator.clipboard.writeText(text); button.textContent = "copied"; } catch { const range = document.createRange(); range.selectNodeContents(pre); getSelection().removeAllRanges(); getSelection().addRange(range); button.textContent = "selected"; } }); return [pre, button]; };
  const pattern = (text) => {
    const canvas = element("canvas"), size = 32, bytes = atob(text), pen = canvas.getContext("2d"), image = pen.createImageData(size, size);
    canvas.width = canvas.height = size;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", "Pattern on 32 random tokens: rows are queries, columns keys, darker is more weight");
    for (let i = 0; i < size * size; i++) { const v = bytes.charCodeAt(i), dark = v ? 60 + 195 * Math.sqrt(v / 255) : 0; image.data.set([255 - dark, 255 - 0.72 * dark, 255 - 0.45 * dark, 255], 4 * i); }
    pen.putImageData(image, 0, 0);
    return canvas;
  };
  const paintCard = () => {
    const card = at("card"), one = places.get(state.place);
    if (!one) return;
    card.replaceChildren(element("h2", one.name), element("p", `${plural[one.card.kind]} · ${one.card.family}`, "soft"), element("p", one.card.summary[0].toUpperCase() + one.card.summary.slice(1) + "."));
    const chips = element("p", undefined, "chips"), compare = element("button", state.compared.includes(one.name) ? "no longer compare" : "compare");
    compare.type = "button"; compare.id = "compare-this";
    compare.addEventListener("click", () => { toggle(one.name); paintCard(); at("compare-this").focus(); });
    chips.append(compare); card.append(chips);
    section(card, "Formula", formula(one.formula));
    if (one.pattern) section(card, "Who sees whom", pattern(one.pattern), element("p", "32 random tokens; rows are queries, columns keys.", "soft"));
    const plot = chart([one], true);
    section(card, "Cost", element("p", one.card.cost), ...(plot ? [plot, element("p", `${one.curve[one.curve.length - 1].spec}, beside torch's full attention (dashed). ${source("bench")}`, "soft")] : [element("p", one.card.kind === "mechanism" ? "Not measured yet: mapformers bench" : "", "soft")]));
    if (one.recall !== null) section(card, "Recall", element("p", `${(100 * one.recall).toFixed(1)} % of answers right`), element("p", source("compare-mqar"), "soft"));
    if (one.audit) section(card, "Proven", element("p", one.audit.passed ? "All checks of the audit pass." : "A check of the audit fails.", "verdict " + (one.audit.passed ? "good" : "bad")), table(["check", "largest change"], one.audit.rows.map((r) => [r.name, r.measured.toExponential(0)])), element("p", source("audit"), "soft"));
    for (const peer of one.peers) section(card, `The package ${peer.package} ${peer.version}`, element("p", peer.passed ? "No check of the audit fails." : peer.said, peer.passed ? "" : "verdict bad"), element("p", source("audit-peers"), "soft"));
    const can = Object.entries(data.capabilities).map(([name, meaning]) => [name, one.card.supports.includes(name) ? "yes" : "no", meaning]);
    if (one.card.supports.length) section(card, "What it can", table(["what", "can", "meaning"], can));
    if (one.card.options.length) section(card, "Options", table(["option", "default", "meaning"], one.card.options.map((o) => [o.name, String(o.default), o.meaning])));
    section(card, "Use it", ...copyable(one.code), ...copyable(`mapformers show ${one.name}`));
    section(card, "Paper", paper(one.card.paper));
    const near = element("p", undefined, "chips");
    for (const line of data.lines) if (line.child === one.name || line.parent === one.name) { const other = line.child === one.name ? line.parent : line.child, b = element("button", other); b.type = "button"; b.title = line.why; b.addEventListener("click", () => go(other, true)); near.append(line.child === one.name ? "from " : "to ", b, ` ${line.why}. `); }
    if (near.childNodes.length) section(card, "On the map", near);
  };

  // Comparison.
  const toggle = (name) => { state.compared = state.compared.includes(name) ? state.compared.filter((x) => x !== name) : [...state.compared, name].slice(-4); paintCompare(); remember(); };
  const paintCompare = () => {
    const chosen = at("chosen"), t = at("table"), ones = state.compared.map((name) => places.get(name));
    chosen.replaceChildren();
    for (const one of ones) { const b = element("button", `${one.name} ×`); b.type = "button"; b.setAttribute("aria-label", `remove ${one.name}`); b.addEventListener("click", () => toggle(one.name)); chosen.append(b); }
    if (!ones.length) chosen.textContent = "none yet; add two or more, at most four.";
    t.replaceChildren(); at("curves").replaceChildren();
    if (!ones.length) return;
    const head = element("tr");
    head.append(element("td"));
    for (const one of ones) { const th = element("th", one.name); th.scope = "col"; head.append(th); }
    t.append(head);
    const none = "not measured", rows = [
      ["family", (o) => o.card.family], ["what it does", (o) => o.card.summary], ["formula", (o) => formula(o.formula)], ["causal", (o) => o.card.causal], ["cost", (o) => o.card.cost],
      [`beside full attention at ${comma(data.at)}`, (o) => (o.faster === null ? none : times(o.faster))], [`memory at ${comma(data.at)}`, (o) => (o.memory === null ? none : `${comma(o.memory)} MB`)],
      ["recall", (o) => (o.recall === null ? none : o.recall.toFixed(3))], ["audit", (o) => (o.audit ? (o.audit.passed ? "passed" : "failed") : none)],
      ...Object.entries(data.capabilities).map(([name]) => [name, (o) => (o.card.supports.includes(name) ? "yes" : "no")]), ["paper", (o) => o.card.paper],
    ];
    for (const [name, of] of rows) { const tr = element("tr"), th = element("th", name); th.scope = "row"; tr.append(th); for (const one of ones) { const td = element("td"); td.append(of(one)); tr.append(td); } t.append(tr); }
    const plot = chart(ones, false);
    if (plot) at("curves").append(plot, element("p", source("bench"), "soft"));
  };

  // The chooser: the answers of `mapformers choose`, made when the page was.
  const paintAnswers = () => {
    const key = [at("q-length").value, at("q-use").value, at("q-pretrained").checked ? 1 : 0, at("q-task").value].join(" "), list = at("answers");
    list.replaceChildren();
    for (const [spec, name, reasons] of data.choices[key] || []) {
      const item = element("li"), button = element("button", "show");
      button.type = "button"; button.setAttribute("aria-label", `show ${name}`);
      button.addEventListener("click", () => { show("map"); go(name, true); });
      item.append(element("span", spec, "spec"), " ", button, element("p", reasons));
      list.append(item);
    }
    if (!list.children.length) list.append(element("li", "Nothing fits; drop a condition."));
    at("answers-source").textContent = data.sources.bench ? `Ranked as mapformers choose does. ${source("bench")}` : "No measured results come with this page; the order is that of the survey.";
  };

  const show = (view) => { state.view = view; for (const name of ["map", "compare", "choose"]) { at("view-" + name).hidden = name !== view; at("tab-" + name).setAttribute("aria-pressed", String(name === view)); } remember(); };
  const remember = () => { const parts = [`view=${state.view}`, `place=${state.place}`, `measure=${state.measure}`, `compare=${state.compared.join(",")}`]; try { history.replaceState(null, "", "#" + parts.join("&")); } catch { /* a page that may not */ } };
  const go = (name, focus) => { state.place = name; paintDots(); paintCard(); remember(); if (focus) at("card").focus({ preventScroll: false }); };
  const search = (jump) => {
    const words = at("search").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const hits = data.places.filter((one) => words.every((word) => [one.name, one.card.paper, one.card.summary, one.card.family, one.card.kind].join(" ").toLowerCase().includes(word)));
    const names = new Set(words.length ? hits.map((one) => one.name) : []);
    map.classList.toggle("searching", words.length > 0);
    for (const [name, { group }] of dots) group.classList.toggle("hit", names.has(name));
    at("found").textContent = words.length ? `${hits.length} found` : "";
    const exact = hits.find((one) => one.name === words.join("_")) || hits[0];
    if (jump && words.length && exact) { show("map"); go(exact.name, true); }
  };
  for (const view of ["map", "compare", "choose"]) at("tab-" + view).addEventListener("click", () => show(view));
  at("search-form").addEventListener("submit", (event) => { event.preventDefault(); search(true); });
  at("search").addEventListener("input", () => search(false));
  at("measure").addEventListener("change", (event) => { state.measure = event.target.value; paintDots(); remember(); });
  at("questions").addEventListener("change", paintAnswers);
  at("questions").addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("keydown", (event) => { if (event.key === "/" && !event.target.closest("input, select")) { event.preventDefault(); at("search").focus(); } });
  const option = (parent, value, text) => { const o = element("option", text); o.value = value; at(parent).append(o); };
  for (const one of data.places) { const o = element("option"); o.value = one.name; at("names").append(o); }
  option("add", "", "a place …");
  for (const one of data.places) option("add", one.name, one.name);
  at("add").addEventListener("change", (event) => { const name = event.target.value; if (name && !state.compared.includes(name)) toggle(name); event.target.value = ""; });
  const keys = Object.keys(data.choices).map((key) => key.split(" "));
  for (const n of new Set(keys.map((key) => key[0]))) option("q-length", n, comma(Number(n)));
  for (const task of new Set(keys.map((key) => key[3]))) option("q-task", task, task);
  at("source").textContent = Object.entries(data.sources).map(([name, s]) => (s === null ? `${name}: not measured yet` : `${name}: ${s.date}, ${s.machine}`)).join(" · ");
  const asked = new URLSearchParams(location.hash.slice(1));
  if (places.has(asked.get("place"))) state.place = asked.get("place");
  if (LEGENDS[asked.get("measure")]) { state.measure = asked.get("measure"); at("measure").value = state.measure; }
  state.compared = (asked.get("compare") || "").split(",").filter((name) => places.has(name)).slice(0, 4);
  const view = ["map", "compare", "choose"].includes(asked.get("view")) ? asked.get("view") : "map";
  setBox([...whole]);
  paintDots(); paintCard(); paintCompare(); paintAnswers(); show(view);
})();
