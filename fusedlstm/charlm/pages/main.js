const ON = 0.3, MATCHES = 12;
const chosen = { quantity: FACTS.quantities[0], layer: 0, cell: 0 };
const labels = new Map(FACTS.interesting.map((c) => [`${c.layer}.${c.cell}`, c.label]));
const kept = FACTS.layers.flatMap((cells, layer) => cells.map((cell) => [layer, cell]));
const reader = new Reader(at("reader"), at("rows"), here, match);
let squares = [], moveMarker = () => {};

function choose(layer, cell, place = null) {
  if (!FACTS.layers[layer].includes(cell)) return;
  const other = layer !== chosen.layer || !squares.length;
  Object.assign(chosen, { layer, cell });
  if (other) fillLayer();
  at("layer").value = layer;
  at("cell").value = cell;
  reader.colour(row(chosen.quantity, layer, cell));
  at("reader").setAttribute("aria-label", `The text, coloured by cell ${layer}.${cell}`);
  for (const button of document.querySelectorAll("[data-cell]")) {
    const is = button.dataset.cell === `${layer}.${cell}`;
    if (button.tagName === "circle") button.classList.toggle("chosen", is);
    else button.setAttribute(button.closest("#map") ? "aria-pressed" : "aria-current", is);
  }
  if (place !== null) { reader.show(place, true); reader.move(place); }
  else here(reader.cursor);
}

// The cells of a layer: a list to choose from, and a square for each.
function fillLayer() {
  const { layer } = chosen, name = (cell) => labels.get(`${layer}.${cell}`);
  at("cell").replaceChildren(...FACTS.layers[layer].map((cell) =>
    make("option", { value: cell, textContent: name(cell) ? `${cell}: ${name(cell)}` : cell })));
  squares = FACTS.layers[layer].map((cell) => {
    const made = make("button", { type: "button", tabIndex: -1, title: `cell ${layer}.${cell}` });
    made.dataset.cell = `${layer}.${cell}`;
    made.setAttribute("aria-label", `cell ${layer}.${cell}`);
    made.addEventListener("click", () => choose(layer, cell));
    return made;
  });
  at("map").replaceChildren(...squares);
}

// Tells of a place: its character, what it cost, and what is expected after it.
function here(n) {
  const { quantity, layer, cell } = chosen, code = FACTS.codes[array("ids")[n]], bits = array("bits")[n];
  const value = row(quantity, layer, cell)[n] / SCALE;
  const facts = [
    [FACTS.kind === "bytes" ? "byte" : "code point", hex(code)],
    ["place", (n + 1).toLocaleString("en")],
    [`${NAMES[quantity]} of ${layer}.${cell}`, signed(value)],
    ["loss", Number.isNaN(bits) ? "not predicted" : `${decimals(bits)} bits`],
  ];
  at("here").replaceChildren(make("b", { textContent: WORDS[TEXT[n]] ?? TEXT[n] }),
    ...facts.flatMap(([name, told]) => [make("span", { textContent: name }), make("span", { textContent: told })]));
  const ids = array("likeliest"), shares = array("probabilities"), K = ids.length / N;
  at("guesses").replaceChildren(...Array.from({ length: K }, (_, k) => {
    const share = shares[n * K + k] / SHARE, bar = make("i");
    bar.style.width = `${100 * share}%`;
    return make("li", {}, make("b", { textContent: word(ids[n * K + k]) }), bar,
      make("span", { textContent: `${(100 * share).toFixed(1)} %` }));
  }));
  const likely = Array.from(at("guesses").children, (row) => `${row.firstChild.textContent} ${row.lastChild.textContent}`);
  at("spoken").textContent = `${WORDS[TEXT[n]] ?? TEXT[n]}, ${facts.slice(2).map((fact) => fact.join(" ")).join(", ")}; next ${likely.join(", ")}`;
  const values = array(`${quantity}-${layer}`);
  squares.forEach((square, k) => tint(square, values[k * N + n]));
}

// In how much of a stretch a cell is above ON and in how much below -ON, and the sum of what it is.
function spent(values, from, to) {
  const limit = ON * SCALE;
  let high = 0, low = 0, sum = 0;
  for (let n = from; n < to; n++) {
    const value = values[n];
    sum += value;
    if (value >= limit) high++;
    else if (value <= -limit) low++;
  }
  return [high, low, sum];
}

// The same over the whole text, for each cell that is kept; counted once.
const wholes = new Map();
function whole(quantity) {
  if (!wholes.has(quantity)) wholes.set(quantity, kept.map(([layer, cell]) => spent(row(quantity, layer, cell), 0, N)));
  return wholes.get(quantity);
}

// The cells that are on in a selection and off elsewhere, the best first.
function match(from, to) {
  at("match").hidden = to - from < 2;
  if (to - from < 2) return;
  const inside = to - from, outside = Math.max(1, N - inside), all = whole(chosen.quantity);
  const found = kept.map(([layer, cell], k) => {
    const here = spent(row(chosen.quantity, layer, cell), from, to);
    const [high, low, sum] = here.map((amount, i) => amount / inside - (all[k][i] - amount) / outside);
    const means = [here[2] / inside / SCALE, (all[k][2] - here[2]) / outside / SCALE];
    return { layer, cell, score: Math.max(high, low), apart: Math.abs(sum), means };
  }).sort((a, b) => b.score - a.score || b.apart - a.apart);
  at("match_note").textContent = `${inside.toLocaleString("en")} characters; on is above ${ON} or below \u2212${ON}. ` +
    "The figures are the share of the selection in which the cell is on less that of the rest, and the means of both.";
  at("matches").replaceChildren(...found.slice(0, MATCHES).map(({ layer, cell, score, means }) => {
    const button = make("button", { type: "button" }, `cell ${layer}.${cell} `,
      make("small", { textContent: `${decimals(score)} \u00b7 ${signed(means[0])} / ${signed(means[1])}` }));
    button.dataset.cell = `${layer}.${cell}`;
    button.setAttribute("aria-current", layer === chosen.layer && cell === chosen.cell);
    button.addEventListener("click", () => choose(layer, cell));
    return make("li", {}, button);
  }));
}

function radios(id, options, value, chose) {
  for (const [name, words] of options) {
    const input = make("input", { type: "radio", name: id, value: name, checked: name === value });
    input.addEventListener("change", () => chose(name));
    at(id).append(make("label", {}, input, make("span", { textContent: words })));
  }
}

function paintCards() {
  for (const card of document.querySelectorAll(".card")) {
    const { layer, cell, from } = FACTS.interesting[Number(card.dataset.index)];
    excerpt(card.querySelector("canvas"), from, row(FACTS.quantities[0], layer, cell));
  }
}

function start() {
  const all = FACTS.layers.every((cells) => cells.length === FACTS.of);
  at("kept").textContent = (all ? "All cells are on this page" : `The ${FACTS.layers[0].length} most interesting cells of each layer are on this page`) +
    (FACTS.left_out.length ? `, without ${FACTS.left_out.map((q) => NAMES[q]).join(", ")}: ask for fewer characters or cells to have them.` : ".");
  radios("views", Object.entries(VIEWS).map(([name, { name: words }]) => [name, words]), "strip", (view) => reader.look(view));
  radios("quantities", FACTS.quantities.map((q) => [q, NAMES[q]]), chosen.quantity, (quantity) => {
    chosen.quantity = quantity;
    choose(chosen.layer, chosen.cell);
    match(reader.from, reader.to);
  });
  at("layer").append(...FACTS.layers.map((_, layer) => make("option", { value: layer, textContent: layer })));
  at("layer").addEventListener("change", (event) => choose(Number(event.target.value), FACTS.layers[event.target.value][0]));
  at("cell").addEventListener("change", (event) => choose(chosen.layer, Number(event.target.value)));
  FACTS.interesting.forEach(({ layer, cell, label, measure, figure, low, from }, index) => {
    const canvas = make("canvas"), card = make("button", { type: "button", className: "card" },
      make("strong", { textContent: label || "changes much" }),
      make("small", { textContent: `cell ${layer}.${cell}${label ? `, ${low ? "low there" : "high there"}, ${measure} ${decimals(figure)}` : ""}` }), canvas);
    canvas.setAttribute("aria-hidden", "true");
    card.dataset.cell = `${layer}.${cell}`;
    card.dataset.index = index;
    card.addEventListener("click", () => { choose(layer, cell, from); at("text_title").scrollIntoView(); });
    at("cards").append(card);
  });
  if (FACTS.curve.length) moveMarker = curve(at("curve"), FACTS.curve);
  if (FACTS.samples.length) {
    const shown = () => {
      const { step, text } = FACTS.samples[at("step").valueAsNumber];
      at("step_shown").textContent = step.toLocaleString("en");
      at("step").setAttribute("aria-valuetext", `step ${step}`);
      at("sample").textContent = text;
      moveMarker(step);
    };
    at("step").addEventListener("input", shown);
    shown();
  }
  at("gates").append(...FACTS.gates.map((gate) => cloud(gate, choose)));
  const { by_class, by_line, by_word, by_text, brace } = FACTS.losses;
  const tables = [
    ["Bits by kind of character", by_class], ["Bits by place in the line", by_line],
    ["Bits by letter of the word", by_word], ["Bits by characters read before", by_text],
    ["P(}) where it comes, by characters since its {", brace],
  ];
  at("losses").append(...tables.filter(([, rows]) => rows.length).map(([title, rows]) => bars(title, rows)));
  const best = FACTS.interesting[0];
  choose(best.layer, best.cell);
  paintCards();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paintCards);
  document.body.dataset.ready = Math.round(performance.now());
}

start();
