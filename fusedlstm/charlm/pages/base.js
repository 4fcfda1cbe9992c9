const at = (id) => document.getElementById(id);
const FACTS = JSON.parse(at("facts").textContent);
const TEXT = Array.from(FACTS.text), N = FACTS.characters;
const TYPES = { ids: Uint16Array, likeliest: Uint16Array, probabilities: Uint16Array, bits: Float32Array };
const NAMES = { tanh_c: "tanh(c)", h: "h", f: "forget gate", i: "input gate", o: "output gate", g: "candidate" };
const SIGNS = { " ": "\u00a0", "\n": "\u23ce", "\t": "\u21e5", "\r": "\u240d" };
const WORDS = { " ": "space", "\n": "new line", "\t": "tab", "\r": "return" };
const SCALE = 127, SHARE = 65535;

// An element with properties and children; text is only ever text.
function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// What the page holds under a name, decoded when it is first asked for.
const decoded = new Map();
function array(name) {
  if (!decoded.has(name)) {
    const held = at(`array-${name}`), raw = atob(held.textContent), bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    held.remove();
    decoded.set(name, new (TYPES[name] ?? Int8Array)(bytes.buffer));
  }
  return decoded.get(name);
}

// A cell's activations over the text, as whole numbers from -127 to 127.
function row(quantity, layer, cell) {
  const k = FACTS.layers[layer].indexOf(cell);
  return array(`${quantity}-${layer}`).subarray(k * N, (k + 1) * N);
}

const decimals = (value, digits = 2) => `${value < 0 ? "\u2212" : ""}${Math.abs(value).toFixed(digits)}`;
const signed = (value) => (value < 0 ? "" : "+") + decimals(value);
const hex = (code) => `0x${code.toString(16).padStart(2, "0")}`;

// A character of the vocabulary as it fits into one place, and in words.
const beyond = (code) => code < 32 || code === 127 || (FACTS.kind === "bytes" && code > 127);
function sign(id) {
  const code = FACTS.codes[id], character = String.fromCodePoint(code);
  return SIGNS[character] ?? (beyond(code) ? "\u00b7" : character);
}
function word(id) {
  const code = FACTS.codes[id], character = String.fromCodePoint(code);
  return WORDS[character] ?? (beyond(code) ? hex(code) : character);
}
const glyph = (n) => SIGNS[TEXT[n]] ?? (TEXT[n] < " " ? "\u00b7" : TEXT[n]);

// Colours an element by an activation of -127 to 127: the page shows through at 0.
function tint(element, value) {
  element.classList.toggle("lo", value < 0);
  element.classList.toggle("hi", value > 0);
  element.style.setProperty("--a", (Math.abs(value) / SCALE).toFixed(3));
}
