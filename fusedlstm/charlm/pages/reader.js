// The text in rows, of which only those in view exist. One place has the cursor, and some may be picked.
const VIEWS = {
  strip: { name: "With guesses", height: 96, wide: 11, breaks: false },
  alone: { name: "Text alone", height: 18, wide: 9, breaks: true },
};
const GUESSES = 5, SPARE = 2;  // rows beyond the edges

class Reader {
  constructor(box, rows, moved, picked) {
    Object.assign(this, { box, rows, moved, picked, view: "strip", cursor: 0, from: 0, to: 0, anchor: null });
    this.shown = new Map();
    this.values = null;
    box.addEventListener("scroll", () => this.draw(), { passive: true });
    box.addEventListener("pointerdown", (event) => this.press(event));
    box.addEventListener("pointermove", (event) => this.point(event));
    window.addEventListener("pointerup", () => { if (this.anchor !== null) { this.anchor = null; this.picked(this.from, this.to); } });
    box.addEventListener("keydown", (event) => this.key(event));
    this.layout();  // the observer first speaks when the page is drawn, which may be late
    new ResizeObserver(() => this.layout()).observe(box);
  }

  colour(values) {
    this.values = values;
    for (const element of this.shown.values()) this.paint(element);
  }

  look(view) {
    this.view = view;
    this.layout(true);
  }

  // Where each row begins: where the last one is full, and in the text alone also after a new line.
  layout(always = false) {
    const { height, wide, breaks } = VIEWS[this.view];
    const columns = Math.max(8, Math.floor((this.box.clientWidth - 24) / wide));
    if (columns === this.columns && !always) return;
    const top = this.starts ? this.starts[Math.floor(this.box.scrollTop / this.height)] ?? 0 : 0;
    const starts = [0];
    for (let n = 0; n + 1 < N; n++) {
      if ((breaks && TEXT[n] === "\n") || n + 1 - starts[starts.length - 1] >= columns) starts.push(n + 1);
    }
    Object.assign(this, { columns, starts, height, wide });
    this.rows.style.height = `${starts.length * height}px`;
    this.rows.style.setProperty("--wide", `${wide}px`);
    this.rows.replaceChildren();
    this.shown.clear();
    this.box.scrollTop = this.rowOf(top) * height;
    this.draw();
  }

  rowOf(n) {
    let low = 0, high = this.starts.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.starts[middle] <= n) low = middle; else high = middle - 1;
    }
    return low;
  }

  end(row) { return this.starts[row + 1] ?? N; }

  draw() {
    const first = Math.max(0, Math.floor(this.box.scrollTop / this.height) - SPARE);
    const last = Math.min(this.starts.length, Math.ceil((this.box.scrollTop + this.box.clientHeight) / this.height) + SPARE);
    for (const [row, element] of this.shown) {
      if (row < first || row >= last) { element.remove(); this.shown.delete(row); }
    }
    for (let row = first; row < last; row++) {
      if (!this.shown.has(row)) this.shown.set(row, this.rows.appendChild(this.line(row)));
    }
  }

  line(row) {
    const made = make("div", { className: "row" }), start = this.starts[row], end = this.end(row);
    made.style.cssText = `top:${row * this.height}px;height:${this.height}px`;
    made.dataset.start = start;
    const characters = make("div", { className: "characters" });
    for (let n = start; n < end; n++) {
      characters.append(make("span", { textContent: glyph(n), className: TEXT[n] in SIGNS ? "sign" : "" }));
    }
    made.append(characters);
    if (this.view === "strip") {
      const ids = array("likeliest"), shares = array("probabilities"), K = ids.length / N;
      for (let k = 0; k < Math.min(K, GUESSES); k++) {
        const guesses = make("div", { className: "guess", ariaHidden: "true" });
        for (let n = start; n < end; n++) {
          const guess = guesses.appendChild(make("span", { textContent: sign(ids[n * K + k]) }));
          guess.style.setProperty("--a", (shares[n * K + k] / SHARE).toFixed(3));
        }
        made.append(guesses);
      }
    }
    if (this.values) this.paint(made);
    this.mark(made);
    return made;
  }

  paint(element) {
    let n = Number(element.dataset.start);
    for (const span of element.firstChild.children) tint(span, this.values[n++]);
  }

  mark(element) {
    let n = Number(element.dataset.start);
    for (const span of element.firstChild.children) {
      span.classList.toggle("picked", n >= this.from && n < this.to);
      span.classList.toggle("cursor", n === this.cursor);
      n++;
    }
  }

  place(event) {
    const inside = this.rows.getBoundingClientRect();
    const row = Math.max(0, Math.min(this.starts.length - 1, Math.floor((event.clientY - inside.top) / this.height)));
    const column = Math.max(0, Math.floor((event.clientX - inside.left) / this.wide));
    return Math.min(this.starts[row] + column, this.end(row) - 1);
  }

  press(event) {
    if (event.button !== 0 || event.offsetX > this.box.clientWidth) return;
    this.anchor = this.place(event);
    this.select(this.anchor, this.anchor);
    this.move(this.anchor);
  }

  point(event) {
    const n = this.place(event);
    if (this.anchor !== null) this.select(Math.min(n, this.anchor), Math.max(n, this.anchor) + 1);
    if (n !== this.cursor) this.move(n);
  }

  select(from, to) {
    if (from === this.from && to === this.to) return;
    Object.assign(this, { from, to });
    for (const element of this.shown.values()) this.mark(element);
  }

  move(n) {
    this.span(this.cursor)?.classList.remove("cursor");
    this.cursor = n;
    this.span(n)?.classList.add("cursor");
    this.moved(n);
  }

  // The element of a place, if it is in view.
  span(n) {
    const row = this.rowOf(n);
    return this.shown.get(row)?.firstChild.children[n - this.starts[row]];
  }

  key(event) {
    const row = this.rowOf(this.cursor), column = this.cursor - this.starts[row];
    const beside = (other) => Math.min(this.starts[other] + column, this.end(other) - 1);
    const page = Math.max(1, Math.floor(this.box.clientHeight / this.height) - 1), last = this.starts.length - 1;
    const to = {
      ArrowLeft: () => this.cursor - 1, ArrowRight: () => this.cursor + 1,
      ArrowUp: () => beside(Math.max(row - 1, 0)), ArrowDown: () => beside(Math.min(row + 1, last)),
      PageUp: () => beside(Math.max(row - page, 0)), PageDown: () => beside(Math.min(row + page, last)),
      Home: () => (event.ctrlKey ? 0 : this.starts[row]), End: () => (event.ctrlKey ? N : this.end(row)) - 1,
    }[event.key];
    if (!to) return;
    event.preventDefault();
    const n = Math.max(0, Math.min(N - 1, to()));
    if (event.shiftKey) {
      const fixed = this.to <= this.from ? this.cursor : this.cursor === this.from ? this.to - 1 : this.from;
      this.select(Math.min(n, fixed), Math.max(n, fixed) + 1);
    } else this.select(n, n);
    this.show(n);
    this.move(n);
    this.picked(this.from, this.to);
  }

  // Scrolls so that a place is in view.
  show(n, inMiddle = false) {
    const top = this.rowOf(n) * this.height, { scrollTop, clientHeight } = this.box;
    if (inMiddle) this.box.scrollTop = top - clientHeight / 4;
    else if (top < scrollTop) this.box.scrollTop = top;
    else if (top + this.height > scrollTop + clientHeight - 20) this.box.scrollTop = top + this.height - clientHeight + 20;
    this.draw();
  }
}
