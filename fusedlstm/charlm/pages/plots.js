// Pictures of numbers: SVG for curves and clouds, tables with bars for the rest.
function svg(tag, attributes = {}, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}

// About so many round numbers between two others.
function ticks(low, high, about = 4) {
  const raw = (high - low) / about, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * ([1, 2, 5].find((m) => m * power >= raw) ?? 10);
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high + 1e-9; k++) found.push(k * step);
  return found;
}

// The losses by step; returns what moves the marker to a step.
function curve(box, points) {
  const W = 560, H = 300, LEFT = 34, RIGHT = 76, BOTTOM = 24;
  const drawn = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img" });
  const losses = points.flatMap((p) => [p.train, p.val]).filter((v) => v !== undefined);
  const last = points[points.length - 1];
  const told = [["train", "training"], ["val", "validation"]].filter(([name]) => points.some((p) => name in p));
  drawn.setAttribute("aria-label", `Loss in bits per character, at the end ${told.filter(([name]) => name in last)
    .map(([name, words]) => `${words} ${decimals(last[name], 3)}`).join(", ")}`);
  const low = Math.min(...losses), high = Math.max(...losses), top = last.step || 1;
  const x = (step) => LEFT + (W - LEFT - RIGHT) * step / top;
  const y = (loss) => 8 + (H - BOTTOM - 8) * (high - loss) / (high - low || 1);
  for (const tick of ticks(low, high || 1)) {
    drawn.append(svg("path", { class: "axis", d: `M${LEFT} ${y(tick)}H${W - RIGHT}` }));
    drawn.append(svg("text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, decimals(tick, 1)));
  }
  for (const tick of ticks(0, top)) {
    drawn.append(svg("text", { x: x(tick), y: H - 4, "text-anchor": "middle" }, tick.toLocaleString("en")));
  }
  let below = -Infinity;
  for (const [name, words] of told) {
    const of = points.filter((p) => name in p), end = of[of.length - 1];
    drawn.append(svg("path", { class: name, d: "M" + of.map((p) => `${x(p.step).toFixed(1)} ${y(p[name]).toFixed(1)}`).join("L") }));
    if (of.length < 40) for (const p of of) drawn.append(svg("circle", { class: name, cx: x(p.step), cy: y(p[name]), r: 3 }));
    const height = Math.abs(y(end[name]) - below) < 13 ? below - 13 : y(end[name]);
    drawn.append(svg("text", { class: name, x: W - RIGHT + 8, y: height + 4 }, `${words}`));
    below = height;
  }
  const now = drawn.appendChild(svg("path", { class: "now" }));
  box.append(drawn);
  return (step) => now.setAttribute("d", `M${x(step)} 8V${H - BOTTOM}`);
}

// A gate's cells by how long they are shut and how long open; a click chooses one.
function cloud({ layer, gate, left, right }, chose) {
  const S = 220, EDGE = 26, at01 = (v) => EDGE + (S - EDGE - 6) * v;
  const drawn = svg("svg", { viewBox: `0 0 ${S} ${S}`, role: "img" });
  const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
  const words = `Layer ${layer}, ${NAMES[gate]}`;
  drawn.setAttribute("aria-label", `${words}: on average shut ${(100 * mean(left)).toFixed(0)} % and open ${(100 * mean(right)).toFixed(0)} % of the time`);
  drawn.append(svg("path", { class: "axis", d: `M${at01(0)} ${S - at01(1)}V${S - at01(0)}H${at01(1)}L${at01(0)} ${S - at01(1)}` }));
  for (const tick of [0, 0.5, 1]) {
    drawn.append(svg("text", { x: at01(tick), y: S - EDGE + 15, "text-anchor": "middle" }, `${tick}`));
    drawn.append(svg("text", { x: EDGE - 6, y: S - at01(tick) + 4, "text-anchor": "end" }, `${tick}`));
  }
  left.forEach((value, cell) => {
    const dot = svg("circle", { class: "dot", cx: at01(value).toFixed(1), cy: (S - at01(right[cell])).toFixed(1), r: 3, "data-cell": `${layer}.${cell}` });
    dot.append(svg("title", {}, `cell ${layer}.${cell}: shut ${decimals(value)}, open ${decimals(right[cell])}`));
    dot.addEventListener("click", () => chose(layer, cell));
    drawn.append(dot);
  });
  return make("figure", {}, make("figcaption", { textContent: words }), drawn);
}

function bars(title, rows, digits = 2) {
  const table = make("table", {}, make("caption", { textContent: title }));
  const largest = Math.max(...rows.map((row) => row.mean)) || 1;
  for (const { name, mean, count } of rows) {
    const bar = make("i");
    bar.style.width = `${100 * mean / largest}%`;
    table.append(make("tr", {},
      make("th", { scope: "row", textContent: name }), make("td", { className: "length" }, bar),
      make("td", { textContent: decimals(mean, digits) }),
      make("td", { className: "count", textContent: `of ${count.toLocaleString("en")}` })));
  }
  return table;
}

// An excerpt of the text, coloured by a cell.
function excerpt(canvas, start, values) {
  const style = getComputedStyle(document.documentElement), of = (name) => style.getPropertyValue(name).trim();
  const wide = 7.2, high = 14, ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth || 280, columns = Math.floor(width / wide), rows = 8;
  canvas.width = width * ratio;
  canvas.height = rows * high * ratio;
  canvas.style.height = `${rows * high}px`;
  const to = canvas.getContext("2d");
  to.scale(ratio, ratio);
  to.font = `11px ${of("--mono")}`;
  to.textAlign = "center";
  for (let n = start, line = 0, column = 0; n < N && line < rows; n++) {
    const value = values[n], x = column * wide, y = line * high;
    to.fillStyle = `rgb(${of(value < 0 ? "--low" : "--high")} / ${Math.abs(value) / SCALE})`;
    to.fillRect(x, y, wide, high);
    to.fillStyle = of(TEXT[n] in SIGNS ? "--quiet" : "--ink");
    to.fillText(glyph(n), x + wide / 2, y + 10.5);
    column++;
    if (TEXT[n] === "\n" || column >= columns) { line++; column = 0; }
  }
}
