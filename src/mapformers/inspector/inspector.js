(() => {
  const whole = lazy((b) => (facts.wide ? new Uint32Array(b.buffer) : new Uint16Array(b.buffer)));
  const small = lazy((b) => b);
  const halves = lazy((b) => new Uint16Array(b.buffer));
  const tokens = bytesOf("tokens");
  const bits = new Float32Array(bytesOf("bits").buffer);
  const N = facts.tokens, KEEP = facts.keep, NONE = facts.wide ? 4294967295 : 65535, NO_CLUSTER = 65535;
  const ROW = 24;

  // Bytes as characters: unit u starts at starts[u]; shown[u] is what stands for it, odd[u] whether as a symbol.
  const starts = [], shown = [], odd = [], unitOf = new Uint32Array(N);
  const lengthOf = (b) => (b < 0x80 ? 1 : b >= 0xc2 && b < 0xe0 ? 2 : b >= 0xe0 && b < 0xf0 ? 3 : b >= 0xf0 && b < 0xf5 ? 4 : 0);
  const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  for (let i = 0; i < N;) {
    let size = lengthOf(tokens[i]) || 1, text = null;
    try { text = i + size <= N ? decoder.decode(tokens.subarray(i, i + size)) : null; } catch { text = null; }
    if (text === null) size = 1;
    const code = text === null ? -1 : text.codePointAt(0);
    let symbol = false;
    if (code < 0) { text = "‹" + tokens[i].toString(16).padStart(2, "0").toUpperCase() + "›"; symbol = true; }
    else if (code === 10) { text = "⏎"; symbol = true; }
    else if (code === 9) { text = "→"; symbol = true; }
    else if (code < 32) { text = String.fromCodePoint(0x2400 + code); symbol = true; }
    else if (code === 127) { text = "␡"; symbol = true; }
    else if (/\p{C}|\p{Zl}|\p{Zp}/u.test(text)) { text = "‹U+" + code.toString(16).toUpperCase() + "›"; symbol = true; }
    else if (code !== 32 && /\p{M}/u.test(text)) { text = "◌" + text; }
    for (let k = 0; k < size; k++) unitOf[i + k] = starts.length;
    starts.push(i); shown.push(text); odd.push(symbol);
    i += size;
  }
  // Lines of units: a line ends at a line break or when it is full.
  const narrow = window.matchMedia("(max-width: 800px)").matches;
  const WIDE = narrow ? 34 : 84, lines = [];
  for (let u = 0, from = 0, width = 0; u < starts.length; u++) {
    width += Math.max(1, shown[u].length);
    if (u === starts.length - 1 || tokens[starts[u]] === 10 || width >= WIDE) { lines.push([from, u + 1]); from = u + 1; width = 0; }
  }
  const lineOf = new Uint32Array(starts.length);
  lines.forEach(([a, b], row) => { for (let u = a; u < b; u++) lineOf[u] = row; });

  const state = { layer: 0, head: 0, chosen: [], colour: "clusters", direction: "out", hits: [], trail: [] };
  const layer = () => facts.layers[state.layer];
  const heads = () => (state.head < 0 ? layer().heads.map((_, h) => h) : [state.head]);
  const keys = () => whole("keys-" + state.layer), weights = () => small("weights-" + state.layer);
  const clusterRow = () => {
    const own = state.head < 0 ? null : layer().heads[state.head].clusters;
    if (own !== null) return own;
    const other = layer().heads.find((head) => head.clusters !== null);
    return state.head < 0 && other ? other.clusters : null;
  };
  const ofRow = (name, i) => { const row = clusterRow(); return row === null ? NO_CLUSTER : halves(name + "-" + state.layer)[row * N + i]; };
  const clusterOf = (i) => ofRow("clusters", i), looksIn = (i) => ofRow("looks_in", i);
  const tint = (cluster) => `hsl(${(cluster * 137.5) % 360} var(--tint-s) var(--tint-l))`;

  // Weights between the selection and all others, summed over chosen tokens and heads: a map from token to weight.
  const related = () => {
    const found = new Map(), add = (i, w) => found.set(i, (found.get(i) || 0) + w);
    const chosen = new Set(state.chosen), k = keys(), w = weights(), all = heads();
    for (const h of all) {
      const base = h * N * KEEP;
      if (state.direction === "out") {
        for (const i of state.chosen) for (let j = 0; j < KEEP; j++) { const p = base + i * KEEP + j; if (k[p] !== NONE && w[p]) add(k[p], w[p] / 255); }
      } else {
        for (let p = 0; p < N * KEEP; p++) if (chosen.has(k[base + p]) && w[base + p]) add(Math.floor(p / KEEP), w[base + p] / 255);
      }
    }
    const scale = all.length * (state.direction === "out" ? Math.max(1, state.chosen.length) : 1);
    for (const [i, v] of found) found.set(i, v / scale);
    return found;
  };
  let linked = new Map(), strongest = [];

  const snippet = (i) => {
    const u = unitOf[i], a = Math.max(0, u - 10), b = Math.min(starts.length, u + 9);
    return [shown.slice(a, u).join(""), shown[u], shown.slice(u + 1, b).join("")];
  };
  const number = (x) => x.toLocaleString("en");

  const textBox = at("text"), linesBox = at("lines");
  linesBox.style.height = lines.length * ROW + "px";
  const paintText = () => {
    const first = Math.max(0, Math.floor(textBox.scrollTop / ROW) - 4), last = Math.min(lines.length, first + Math.ceil(textBox.clientHeight / ROW) + 9);
    const most = strongest.length ? strongest[0][1] : 1, chosen = new Set(state.chosen.map((i) => unitOf[i]));
    const seen = new Map();
    for (const [i, v] of linked) seen.set(unitOf[i], Math.max(seen.get(unitOf[i]) || 0, v));
    const hits = new Set(state.hits);
    linesBox.replaceChildren();
    for (let row = first; row < last; row++) {
      const line = element("div", undefined, "line");
      line.style.top = row * ROW + "px";
      line.dataset.at = number(starts[lines[row][0]]);
      for (let u = lines[row][0]; u < lines[row][1]; u++) {
        const token = element("span", shown[u], "token" + (odd[u] ? " odd" : ""));
        token.dataset.unit = u;
        const i = starts[u], cluster = clusterOf(i);
        if (state.colour === "clusters" && cluster !== NO_CLUSTER) token.style.background = tint(cluster);
        if (state.colour === "bits") token.style.background = `hsl(var(--bit) 55% / ${Math.min(1, bits[i] / 8) * 0.45})`;
        if (seen.has(u)) { token.classList.add("seen"); token.style.setProperty("--weight", (0.25 + 0.75 * Math.min(1, seen.get(u) / most)).toFixed(3)); }
        if (chosen.has(u)) token.classList.add("chosen");
        if (hits.has(u)) token.classList.add("hit");
        line.append(token);
      }
      linesBox.append(line);
    }
    paintMinimap();
  };

  const minimap = at("minimap");
  let mapImage = null, mapKey = "";
  const paintMinimap = () => {
    const width = Math.max(1, minimap.clientWidth), context = minimap.getContext("2d"), style = getComputedStyle(document.documentElement);
    const key = [width, state.layer, state.head, style.getPropertyValue("--page")].join();
    minimap.width = width;
    if (key !== mapKey) {
      const off = document.createElement("canvas");
      off.width = width; off.height = 56;
      const pen = off.getContext("2d"), s = style.getPropertyValue("--tint-s"), l = style.getPropertyValue("--tint-l");
      for (let x = 0; x < width; x++) {
        const a = Math.floor((x * N) / width), b = Math.max(a + 1, Math.floor(((x + 1) * N) / width));
        const cluster = clusterOf(a);
        if (cluster !== NO_CLUSTER) { pen.fillStyle = `hsl(${(cluster * 137.5) % 360} ${s} ${l})`; pen.fillRect(x, 0, 1, 24); }
        let sum = 0;
        for (let i = a; i < b; i++) sum += bits[i];
        const tall = Math.min(28, (28 * sum) / (b - a) / 8);
        pen.fillStyle = style.getPropertyValue("--link");
        pen.fillRect(x, 56 - tall, 1, tall);
      }
      mapImage = off; mapKey = key;
    }
    context.drawImage(mapImage, 0, 0);
    context.fillStyle = style.getPropertyValue("--mark");
    for (const i of state.chosen) context.fillRect((i * width) / N - 1, 0, 3, 56);
    context.fillStyle = style.getPropertyValue("--text");
    for (const [i] of strongest) context.fillRect((i * width) / N, 24, 1, 6);
    const top = starts[lines[Math.min(lines.length - 1, Math.floor(textBox.scrollTop / ROW))][0]];
    const row = Math.min(lines.length - 1, Math.ceil((textBox.scrollTop + textBox.clientHeight) / ROW));
    context.strokeStyle = style.getPropertyValue("--text");
    context.strokeRect((top * width) / N + 0.5, 0.5, Math.max(3, ((starts[lines[row][0]] - top) * width) / N), 55);
  };

  const paintPanel = () => {
    const box = at("selected"), list = at("seen"), mates = at("mates");
    list.replaceChildren();
    if (!state.chosen.length) return;
    const i = state.chosen[state.chosen.length - 1], cluster = looksIn(i), [before, own, after] = snippet(i);
    box.replaceChildren();
    const quoted = element("span"), bold = element("b", own), about = [`token ${number(i)}`];
    quoted.append(before, bold, after);
    quoted.dir = "ltr";
    quoted.style.whiteSpace = "pre-wrap";
    if (state.chosen.length > 1) about.unshift(`${state.chosen.length} tokens, the last`);
    about.push(`${bits[i].toFixed(2)} bits`);
    if (clusterOf(i) !== NO_CLUSTER) about.push(`in cluster ${clusterOf(i)}`);
    if (cluster !== NO_CLUSTER) about.push(`looks into cluster ${cluster}`);
    box.append(quoted, element("br"), element("span", about.join(" · "), "soft"));
    for (const [j, v] of strongest) {
      const item = element("li"), button = element("button"), [a, b, c] = snippet(j), text = element("span", undefined, "snippet");
      text.append(a, element("b", b), c);
      const away = j - i;
      button.type = "button";
      button.append(element("span", (100 * v).toFixed(1) + " %", "share"), text, element("span", away === 0 ? "itself" : `${number(Math.abs(away))} ${away < 0 ? "back" : "on"}`, "far"));
      button.addEventListener("click", () => choose(j, false, true));
      item.append(button);
      list.append(item);
    }
    const all = strongest.reduce((sum, [, v]) => sum + v, 0);
    if (strongest.length && state.direction === "out") list.prepend(element("li", `These carry ${(100 * Math.min(1, all)).toFixed(0)} % of its attention; the rest lies on weaker tokens, or on nothing.`, "soft"));
    if (!strongest.length) list.append(element("li", state.direction === "out" ? "It looks at nothing: all its attention lies on a null key, or there is nothing to see." : "Nobody has it among its strongest."));
    mates.replaceChildren();
    if (cluster === NO_CLUSTER) { mates.textContent = "This head has no clusters."; return; }
    const row = clusterRow() * N, c = halves("clusters-" + state.layer), near = [];
    let count = 0, farthest = -1;
    for (let j = 0; j < N; j++) if (c[row + j] === cluster && j !== i) { count++; if (j < i) { if (farthest < 0) farthest = j; near.push(j); } }
    mates.append(`In cluster ${cluster}, where it looks: ${number(count)} others` + (farthest < 0 ? ", none before. " : `, the farthest ${number(i - farthest)} back. The nearest before: `));
    for (const j of near.slice(-8).reverse()) {
      const button = element("button", shown[unitOf[j]]);
      button.type = "button";
      button.setAttribute("aria-label", `${shown[unitOf[j]]}, ${i - j} back`);
      button.title = `${number(i - j)} back`;
      button.addEventListener("click", () => choose(j, false, true));
      mates.append(button);
    }
  };

  const paintHeads = () => {
    const table = at("heads"), head = element("tr");
    table.replaceChildren();
    for (const [name, type] of [["Head"], ["Mechanism"], ["Horizon", "number"], ["Entropy", "number"], ["Divergence", "number"]]) { const th = element("th", name, type); th.scope = "col"; head.append(th); }
    table.append(head);
    layer().heads.forEach((one, h) => {
      const row = element("tr", undefined, h === state.head ? "chosen" : "");
      const apart = state.head < 0 ? "–" : layer().divergence[h][state.head].toFixed(3);
      row.append(element("td", String(h + 1)), element("td", one.mechanism), element("td", one.horizon.toFixed(1), "number"), element("td", one.entropy.toFixed(2), "number"), element("td", apart, "number"));
      table.append(row);
    });
  };

  const paintChart = () => {
    const buckets = Math.min(120, N), points = [];
    let top = 0;
    for (let b = 0; b < buckets; b++) {
      const from = Math.floor((b * N) / buckets), to = Math.max(from + 1, Math.floor(((b + 1) * N) / buckets));
      let sum = 0;
      for (let i = from; i < to; i++) sum += bits[i];
      points.push(sum / (to - from));
      top = Math.max(top, sum / (to - from));
    }
    const name = "http://www.w3.org/2000/svg", svg = document.createElementNS(name, "svg");
    const part = (kind, fields, text) => { const e = document.createElementNS(name, kind); for (const k in fields) e.setAttribute(k, fields[k]); if (text !== undefined) e.textContent = text; svg.append(e); };
    svg.setAttribute("viewBox", "0 0 800 140"); svg.setAttribute("preserveAspectRatio", "none"); svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `Bits by position, between 0 and ${top.toFixed(1)}`);
    part("line", { x1: 0, x2: 800, y1: 120, y2: 120 });
    part("polyline", { points: points.map((v, b) => `${((b + 0.5) * 800) / buckets},${120 - (110 * v) / (top || 1)}`).join(" ") });
    at("chart").replaceChildren(svg, element("p", `from token 0 to ${number(N)}; the line's highest point is ${top.toFixed(2)} bits`, "soft"));
  };

  const remember = () => {
    const parts = [`token=${state.chosen.join("+")}`, `layer=${state.layer}`, `head=${state.head}`, `colour=${state.colour}`, `direction=${state.direction}`];
    try { history.replaceState(null, "", "#" + parts.join("&")); } catch { /* a page that may not */ }
  };
  const refresh = () => {
    linked = state.chosen.length ? related() : new Map();
    strongest = [...linked].sort((a, b) => b[1] - a[1] || a[0] - b[0]).slice(0, 24);
    paintText(); paintPanel(); paintHeads(); remember();
  };
  const show = (i) => {
    const y = lineOf[unitOf[i]] * ROW;
    if (y < textBox.scrollTop + ROW || y > textBox.scrollTop + textBox.clientHeight - 2 * ROW) textBox.scrollTop = Math.max(0, y - textBox.clientHeight / 2);
  };
  const choose = (i, more, trail) => {
    const j = Math.max(0, Math.min(N - 1, i));
    if (trail && state.chosen.length) state.trail.push(state.chosen);
    if (!more) state.chosen = [j];
    else if (state.chosen.includes(j)) state.chosen = state.chosen.filter((x) => x !== j);
    else state.chosen = [...state.chosen, j];
    show(j); refresh();
  };

  const fillHeads = () => {
    const select = at("head");
    select.replaceChildren();
    const all = element("option", "all, mean");
    all.value = "-1";
    select.append(all);
    layer().heads.forEach((head, h) => { const option = element("option", `${h + 1} ${head.mechanism}`); option.value = String(h); select.append(option); });
    if (state.head >= layer().heads.length) state.head = 0;
    select.value = String(state.head);
  };
  const setLayer = (n) => { state.layer = Math.max(0, Math.min(facts.layers.length - 1, n)); at("layer").value = String(state.layer); fillHeads(); refresh(); };
  const setHead = (h) => { state.head = Math.max(-1, Math.min(layer().heads.length - 1, h)); at("head").value = String(state.head); refresh(); };
  const setDirection = (d) => { state.direction = d; at("direction").value = d; refresh(); };
  const search = (again) => {
    const wanted = new TextEncoder().encode(at("search").value);
    state.hits = [];
    let count = 0, next = -1;
    const from = state.chosen.length ? state.chosen[state.chosen.length - 1] : -1;
    if (wanted.length) {
      for (let i = 0; i + wanted.length <= N; i++) {
        let k = 0;
        while (k < wanted.length && tokens[i + k] === wanted[k]) k++;
        if (k === wanted.length) { count++; if (state.hits.length < 5000) state.hits.push(unitOf[i]); if (next < 0 && i > from) next = i; }
      }
      if (next < 0 && count) next = starts[state.hits[0]];
    }
    at("found").textContent = wanted.length ? `${number(count)} found` : "";
    if (again && next >= 0) choose(next, false, true); else paintText();
  };

  facts.layers.forEach((one, n) => { const option = element("option", `${n + 1} ${[...new Set(one.heads.map((h) => h.mechanism))].join(" + ")}`); option.value = String(n); at("layer").append(option); });
  at("title").textContent = facts.title;
  document.title = facts.title;
  at("about").textContent = facts.about;
  at("notes").textContent = [`Of each token the ${KEEP} strongest tokens of every head are kept.`, ...facts.notes].join(" ");
  const firstWithClusters = facts.layers.findIndex((one) => one.heads.some((h) => h.clusters !== null));
  if (firstWithClusters >= 0) { state.layer = firstWithClusters; state.head = facts.layers[firstWithClusters].heads.findIndex((h) => h.clusters !== null); }
  const asked = new URLSearchParams(location.hash.slice(1).replaceAll("+", "%2B"));
  const whole_ = (name, low, high, otherwise) => { const v = Number.parseInt(asked.get(name), 10); return Number.isInteger(v) && v >= low && v <= high ? v : otherwise; };
  state.layer = whole_("layer", 0, facts.layers.length - 1, state.layer);
  state.head = whole_("head", -1, layer().heads.length - 1, Math.min(state.head, layer().heads.length - 1));
  for (const name of ["colour", "direction"]) { const option = [...at(name).options].find((one) => one.value === asked.get(name)); if (option) state[name] = option.value; at(name).value = state[name]; }
  state.chosen = (asked.get("token") || "").split("+").map((x) => Number.parseInt(x, 10)).filter((x) => x >= 0 && x < N);
  at("layer").value = String(state.layer);
  fillHeads();

  linesBox.addEventListener("click", (event) => { const token = event.target.closest(".token"); if (token) { choose(starts[Number(token.dataset.unit)], event.shiftKey || event.ctrlKey || event.metaKey, true); textBox.focus({ preventScroll: true }); } });
  textBox.addEventListener("scroll", () => requestAnimationFrame(paintText), { passive: true });
  window.addEventListener("resize", () => requestAnimationFrame(paintText));
  minimap.addEventListener("click", (event) => { const box = minimap.getBoundingClientRect(); const i = Math.floor(((event.clientX - box.left) / box.width) * N); textBox.scrollTop = Math.max(0, lineOf[unitOf[Math.min(N - 1, i)]] * ROW - textBox.clientHeight / 2); });
  at("layer").addEventListener("change", (event) => setLayer(Number(event.target.value)));
  at("head").addEventListener("change", (event) => setHead(Number(event.target.value)));
  at("colour").addEventListener("change", (event) => { state.colour = event.target.value; refresh(); });
  at("direction").addEventListener("change", (event) => setDirection(event.target.value));
  at("controls").addEventListener("submit", (event) => { event.preventDefault(); search(true); });
  at("search").addEventListener("input", () => search(false));
  at("next").addEventListener("click", () => search(true));
  textBox.addEventListener("keydown", (event) => {
    const now = state.chosen.length ? unitOf[state.chosen[state.chosen.length - 1]] : -1;
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key], jump = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (move) choose(starts[Math.max(0, Math.min(starts.length - 1, now + move))], event.shiftKey, false);
    else if (jump) {
      const row = Math.max(0, Math.min(lines.length - 1, (now < 0 ? 0 : lineOf[now]) + jump)), along = now < 0 ? 0 : now - lines[lineOf[now]][0];
      choose(starts[Math.min(lines[row][0] + along, lines[row][1] - 1)], event.shiftKey, false);
    } else if (event.key === "Enter" && strongest.length) { const i = state.chosen[state.chosen.length - 1], other = strongest.find(([j]) => j !== i); if (other) choose(other[0], false, true); }
    else if (event.key === "Backspace" && state.trail.length) { state.chosen = state.trail.pop(); show(state.chosen[state.chosen.length - 1]); refresh(); }
    else return;
    event.preventDefault();
  });
  document.addEventListener("keydown", (event) => {
    if (event.target.closest("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
    const known = { "/": () => at("search").focus(), "[": () => setLayer(state.layer - 1), "]": () => setLayer(state.layer + 1), ",": () => setHead(state.head - 1), ".": () => setHead(state.head + 1), d: () => setDirection(state.direction === "out" ? "in" : "out") };
    if (known[event.key]) { known[event.key](); event.preventDefault(); }
  });
  paintChart();
  if (state.chosen.length) show(state.chosen[state.chosen.length - 1]);
  refresh();
})();
