(() => {
  const small = lazy((b) => b), wholes = lazy((b) => new Int32Array(b.buffer)), halves = lazy((b) => new Float32Array(b.buffer));
  const [LINES, COLUMNS] = facts.cells, CELLS = LINES * COLUMNS, PLACES = facts.places;
  const cellOf = wholes("cell"), placesOf = Array.from({ length: CELLS }, () => []);
  for (let i = 0; i < PLACES; i++) if (cellOf[i] >= 0) placesOf[cellOf[i]].push(i);
  const glyphs = facts.shape ? null : bytesOf("glyphs");
  // Tokens that are no text (ListOps) are numbers below 32; in a text those are line breaks and the like.
  const isText = glyphs !== null && glyphs.some((byte) => byte >= 32);
  const glyph = (byte) => (!isText ? String(byte) : byte === 10 ? "⏎" : byte < 32 ? String.fromCodePoint(0x2400 + byte) : byte < 127 ? String.fromCharCode(byte) : "·");

  const state = { view: 0, head: -1, latent: -1, cell: -1, direction: "out", show: "both" };
  const view = () => facts.views[state.view];
  const isRead = () => view().kind === "read";
  const heads = (h = state.head) => (h < 0 ? view().heads.map((_, i) => i) : [h]);

  // Weights over cells, a mean over heads: of a latent (or all), or of the places of a cell.
  const ofLatent = (latent, chosen) => {
    const found = new Float32Array(CELLS), shares = small("reads-" + state.view), scale = halves("scale-" + state.view);
    const all = latent < 0 ? Array.from({ length: view().latents }, (_, l) => l) : [latent];
    for (const h of chosen) for (const l of all) {
      const row = h * view().latents + l, factor = scale[row] / 255 / all.length / chosen.length;
      for (let c = 0; c < CELLS; c++) found[c] += shares[row * CELLS + c] * factor;
    }
    return found;
  };
  const ofCell = (cell, chosen) => {
    const found = new Float32Array(CELLS);
    if (cell < 0) return found;
    const keys = wholes("keys-" + state.view), weights = halves("weights-" + state.view), keep = view().keep;
    const own = new Set(placesOf[cell]), share = 1 / chosen.length / Math.max(1, own.size);
    for (const h of chosen) {
      const base = h * PLACES * keep;
      if (state.direction === "out") {
        for (const i of own) for (let p = base + i * keep; p < base + (i + 1) * keep; p++) if (keys[p] >= 0 && cellOf[keys[p]] >= 0) found[cellOf[keys[p]]] += weights[p] * share;
      } else {
        for (let p = 0; p < PLACES * keep; p++) if (own.has(keys[base + p])) { const c = cellOf[Math.floor(p / keep)]; if (c >= 0) found[c] += weights[base + p] * share; }
      }
    }
    return found;
  };
  const current = (chosen = heads()) => (isRead() ? ofLatent(state.latent, chosen) : ofCell(state.cell, chosen));

  const where = (c) => {
    const place = placesOf[c][0];
    return glyphs ? `“${glyph(glyphs[place])}” at ${place}` : facts.sound ? `place ${c}` : `line ${Math.floor(c / COLUMNS)}, column ${c % COLUMNS}`;
  };
  const percent = (x) => (100 * x).toFixed(1) + " %";
  const maximum = (values) => values.reduce((a, b) => Math.max(a, b), 0);

  const canvas = at("picture"), SIDE = glyphs ? 18 : Math.max(1, Math.min(40, Math.floor(560 / Math.max(COLUMNS, LINES))));
  canvas.width = COLUMNS * SIDE; canvas.height = LINES * SIDE;
  if (!glyphs) canvas.classList.add("fits"); else { at("frame").tabIndex = 0; at("frame").setAttribute("role", "region"); at("frame").setAttribute("aria-label", "The text"); }
  let drawn = null;
  const base = () => {
    if (drawn || glyphs) return drawn;
    const [height, width] = facts.shape, pixels = bytesOf("pixels"), image = new ImageData(width, height);
    for (let i = 0; i < width * height; i++) { for (let k = 0; k < 3; k++) image.data[4 * i + k] = pixels[3 * i + k]; image.data[4 * i + 3] = 255; }
    drawn = document.createElement("canvas");
    drawn.width = width; drawn.height = height;
    drawn.getContext("2d").putImageData(image, 0, 0);
    return drawn;
  };
  const paint = (weights) => {
    const pen = canvas.getContext("2d"), style = getComputedStyle(document.documentElement), most = maximum(weights) || 1;
    pen.fillStyle = style.getPropertyValue("--panel"); pen.fillRect(0, 0, canvas.width, canvas.height);
    if (!glyphs && state.show !== "weights") {
      pen.imageSmoothingEnabled = false;
      pen.drawImage(base(), 0, 0, canvas.width, canvas.height);
    }
    if (state.show !== "picture") {
      for (let c = 0; c < CELLS; c++) if (weights[c] > 0) {
        pen.fillStyle = `hsl(24 95% 52% / ${(0.85 * Math.sqrt(weights[c] / most)).toFixed(3)})`;
        pen.fillRect((c % COLUMNS) * SIDE, Math.floor(c / COLUMNS) * SIDE, SIDE, SIDE);
      }
    }
    if (glyphs) {
      pen.fillStyle = style.getPropertyValue("--text"); pen.font = `${isText ? 14 : 12}px ui-monospace, "DejaVu Sans Mono", monospace`; pen.textAlign = "center"; pen.textBaseline = "middle";
      for (let i = 0; i < PLACES; i++) { const c = cellOf[i]; if (c >= 0) pen.fillText(glyph(glyphs[i]), (c % COLUMNS + 0.5) * SIDE, (Math.floor(c / COLUMNS) + 0.5) * SIDE); }
    }
    if (state.cell >= 0) {
      pen.lineWidth = Math.max(2, SIDE / 10); pen.strokeStyle = "#00b3ff";
      pen.strokeRect((state.cell % COLUMNS) * SIDE + 1, Math.floor(state.cell / COLUMNS) * SIDE + 1, SIDE - 2, SIDE - 2);
    }
  };
  const thumbnail = (weights) => {
    const small = document.createElement("canvas"), most = maximum(weights) || 1;
    small.width = COLUMNS; small.height = LINES;
    small.style.width = Math.max(COLUMNS, Math.min(96, Math.round(64 * Math.max(1, COLUMNS / LINES)))) + "px";
    const image = new ImageData(COLUMNS, LINES);
    for (let c = 0; c < CELLS; c++) { const share = Math.sqrt(weights[c] / most); image.data.set([232, 110, 20, Math.round(255 * share)], 4 * c); }
    small.getContext("2d").putImageData(image, 0, 0);
    return small;
  };

  const rowButton = (list, name, share, act) => {
    const item = element("li"), button = element("button");
    button.type = "button";
    button.append(element("span", percent(share), "share"), element("span", name, "snippet"), element("span"));
    button.addEventListener("click", act);
    item.append(button);
    list.append(item);
  };
  const paintSide = (weights) => {
    const list = at("seen"), total = weights.reduce((a, b) => a + b, 0);
    list.replaceChildren();
    const said = [];
    if (isRead()) said.push(state.latent < 0 ? `All ${view().latents} latents, mean.` : `Latent ${state.latent}.`);
    if (state.cell >= 0) said.push(isRead() ? `Cell: ${where(state.cell)}, weight ${percent(weights[state.cell])}.` : `${where(state.cell)}: ${percent(total)} of its weights are shown.`);
    else said.push(isRead() ? "Click the picture to see which latents read a cell." : "Click a cell, or press an arrow key in the picture.");
    at("selected").textContent = said.join(" ");
    if (isRead() && state.cell >= 0) {
      at("strongest-title").textContent = "Latents that read this cell most";
      const ranked = Array.from({ length: view().latents }, (_, l) => [l, ofLatent(l, heads())[state.cell]]).sort((a, b) => b[1] - a[1]).slice(0, 8);
      for (const [l, share] of ranked) rowButton(list, `latent ${l}`, share, () => { state.latent = l; refresh(); });
    } else {
      at("strongest-title").textContent = "Strongest";
      const ranked = [...weights.keys()].filter((c) => weights[c] > 0).sort((a, b) => weights[b] - weights[a]).slice(0, 8);
      for (const c of ranked) rowButton(list, where(c), weights[c], () => choose(c));
    }
  };
  const paintGallery = () => {
    const box = at("gallery");
    box.replaceChildren();
    at("gallery-title").textContent = isRead() ? "What each latent reads" : "What each head sees from the chosen cell";
    const count = isRead() ? view().latents : view().heads.length;
    for (let i = 0; i < count; i++) {
      const button = element("button"), pressed = isRead() ? state.latent === i : state.head === i;
      button.type = "button";
      button.setAttribute("aria-pressed", String(pressed));
      button.setAttribute("aria-label", isRead() ? `latent ${i}` : `head ${i + 1}`);
      button.append(thumbnail(isRead() ? ofLatent(i, heads()) : ofCell(state.cell, [i])), element("span", isRead() ? String(i) : `${i + 1} ${view().heads[i].name}`));
      button.addEventListener("click", () => { if (isRead()) state.latent = pressed ? -1 : i; else state.head = pressed ? -1 : i; refresh(); at("gallery").children[i].focus(); });
      box.append(button);
    }
  };
  const paintHeads = () => {
    const table = at("heads"), head = table.createTHead();
    table.replaceChildren(head);
    const titles = element("tr");
    for (const title of ["Head", "", "Entropy", "As many as"]) { const cell = element("th", title, title[0] === "E" || title[0] === "A" ? "number" : ""); cell.scope = "col"; titles.append(cell); }
    head.replaceChildren(titles);
    const body = element("tbody");
    view().heads.forEach((one, h) => {
      const row = element("tr", undefined, h === state.head ? "chosen" : "");
      row.append(element("td", String(h + 1)), element("td", one.name), element("td", one.entropy.toFixed(2), "number"), element("td", (2 ** one.entropy).toFixed(1) + " places", "number"));
      body.append(row);
    });
    table.append(body);
  };
  const paintAnswer = () => {
    const box = at("answer");
    if (!facts.answer.length) return;
    box.append(element("h2", "Answer"), element("p", `Its class is ${facts.label}.`, "soft"));
    const table = element("table"), body = element("tbody");
    for (const [name, share] of facts.answer) {
      const row = element("tr"), bar = element("span", undefined, "share-bar"), cell = element("td");
      bar.style.width = Math.max(1, 100 * share) + "px";
      cell.append(bar);
      row.append(element("td", name), element("td", percent(share), "number"), cell);
      body.append(row);
    }
    table.append(body);
    box.append(table);
  };

  const fill = (id, options, value) => {
    at(id).replaceChildren(...options.map(([v, text]) => { const option = element("option", text); option.value = String(v); return option; }));
    at(id).value = String(value);
  };
  const refresh = () => {
    if (state.head >= view().heads.length) state.head = -1;
    if (!isRead() || state.latent >= view().latents) state.latent = -1;
    fill("head", [[-1, "all, mean"], ...view().heads.map((one, h) => [h, `${h + 1} ${one.name}`])], state.head);
    fill("latent", [[-1, "all, mean"], ...Array.from({ length: isRead() ? view().latents : 0 }, (_, l) => [l, String(l)])], state.latent);
    at("latent-label").hidden = !isRead();
    at("direction-label").hidden = isRead();
    at("layer").value = String(state.view); at("direction").value = state.direction; at("show").value = state.show;
    const weights = current();
    canvas.setAttribute("aria-label", `${facts.said}, with the weights of ${isRead() ? (state.latent < 0 ? "all latents" : "latent " + state.latent) : "the chosen cell"}; arrow keys choose a cell`);
    paint(weights); paintSide(weights); paintGallery(); paintHeads();
    const said = Object.entries({ layer: state.view, head: state.head, latent: state.latent, cell: state.cell, direction: state.direction, show: state.show });
    history.replaceState(null, "", "#" + said.map(([name, value]) => `${name}=${value}`).join("&"));
  };
  const choose = (cell) => { if (cell >= 0 && cell < CELLS && placesOf[cell].length) { state.cell = cell; refresh(); } };
  const step = (name, by, low, high) => { state[name] = Math.max(low, Math.min(high, state[name] + by)); refresh(); };

  fill("layer", facts.views.map((one, n) => [n, one.kind === "read" ? one.name : `${n + 1} ${one.name}`]), 0);
  at("title").textContent = facts.title;
  document.title = facts.title;
  at("about").textContent = facts.about;
  at("notes").textContent = facts.notes.join(" ");
  paintAnswer();
  const asked = new URLSearchParams(location.hash.slice(1));
  const asked_ = (name, low, high) => { const v = Number.parseInt(asked.get(name), 10); if (Number.isInteger(v) && v >= low && v <= high) state[name === "layer" ? "view" : name] = v; };
  asked_("layer", 0, facts.views.length - 1); asked_("head", -1, view().heads.length - 1); asked_("cell", -1, CELLS - 1);
  if (isRead()) asked_("latent", -1, view().latents - 1);
  for (const name of ["direction", "show"]) if ([...at(name).options].some((one) => one.value === asked.get(name))) state[name] = asked.get(name);
  if (!isRead() && state.cell < 0) state.cell = Math.floor(LINES / 2) * COLUMNS + Math.floor(Math.min(COLUMNS, PLACES) / 2);
  if (state.cell >= 0 && !placesOf[state.cell].length) state.cell = 0;

  for (const [id, name] of [["layer", "view"], ["head", "head"], ["latent", "latent"]]) at(id).addEventListener("change", (event) => { state[name] = Number(event.target.value); refresh(); });
  for (const id of ["direction", "show"]) at(id).addEventListener("change", (event) => { state[id] = event.target.value; refresh(); });
  at("controls").addEventListener("submit", (event) => event.preventDefault());
  canvas.addEventListener("click", (event) => {
    const box = canvas.getBoundingClientRect();
    const column = Math.floor(((event.clientX - box.left) / box.width) * COLUMNS), line = Math.floor(((event.clientY - box.top) / box.height) * LINES);
    choose(Math.max(0, Math.min(LINES - 1, line)) * COLUMNS + Math.max(0, Math.min(COLUMNS - 1, column)));
  });
  canvas.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -COLUMNS, ArrowDown: COLUMNS }[event.key];
    if (!by) return;
    choose(state.cell < 0 ? 0 : state.cell + by);
    event.preventDefault();
  });
  document.addEventListener("keydown", (event) => {
    if (event.target.closest("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
    const known = {
      "[": () => step("view", -1, 0, facts.views.length - 1), "]": () => step("view", 1, 0, facts.views.length - 1),
      ",": () => step("head", -1, -1, view().heads.length - 1), ".": () => step("head", 1, -1, view().heads.length - 1),
      "-": () => isRead() && step("latent", -1, -1, view().latents - 1), "+": () => isRead() && step("latent", 1, -1, view().latents - 1),
      d: () => { state.direction = state.direction === "out" ? "in" : "out"; refresh(); }, Escape: () => { state.latent = -1; refresh(); },
    };
    if (known[event.key]) { known[event.key](); event.preventDefault(); }
  });
  refresh();
})();
