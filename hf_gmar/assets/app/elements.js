// The page's own elements. Each gets its data from the server once, and then needs it no more.
// Texts are set as text, never as markup.

const MOST_BYTES = 2 * 2 ** 20; // larger photos are made smaller before they leave the browser
const LONGEST_SIDE = 2048;

function make(parent, name, options = {}, text = "") {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(options)) element.setAttribute(key, value);
  element.textContent = text;
  parent.append(element);
  return element;
}

function bytes(base64) {
  return Uint8Array.from(atob(base64), letter => letter.charCodeAt(0));
}

// The relative luminance of WCAG; above 0.18 black letters have more contrast than white ones.
function luminance(...colour) {
  const [red, green, blue] = colour.map(value => value / 255)
    .map(value => (value <= 0.04 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

function loaded(source) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("the browser can't show this image"));
    image.src = source;
  });
}

function dataOf(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

// Read a file; a large photo becomes a JPEG of at most 2048 pixels, without its hidden data.
async function prepared(file) {
  const source = await dataOf(file);
  if (file.size <= MOST_BYTES) return { source, note: "" };
  let image;
  try {
    image = await loaded(source);
  } catch {
    return { source, note: "" }; // the server says what is wrong with it
  }
  const share = Math.min(1, LONGEST_SIDE / Math.max(image.naturalWidth, image.naturalHeight));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(image.naturalWidth * share));
  canvas.height = Math.max(1, Math.round(image.naturalHeight * share));
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  const note = `Made smaller in your browser: ${canvas.width} × ${canvas.height} pixels.`;
  return { source: canvas.toDataURL("image/jpeg", 0.92), note };
}

class Upload extends HTMLElement {
  connectedCallback() {
    if (this.ready) return;
    this.ready = true;
    const zone = make(this, "label", { class: "gmar-drop" });
    this.preview = make(zone, "img", { alt: "", hidden: "" });
    this.preview.onerror = () => {
      this.preview.hidden = true;
      this.note.textContent = "Your browser can't show this image.";
    };
    this.hint = make(zone, "span", {}, "Drop an image here, paste one, or choose a file");
    this.input = make(zone, "input", {
      type: "file", accept: "image/*", "aria-label": "Image file",
    });
    this.note = make(this, "p", { class: "gmar-note", role: "status" });
    make(this, "p", { class: "gmar-hint" }, "Or take a drawn scene:");
    const list = make(this, "div", {
      class: "gmar-examples", role: "group", "aria-label": "Examples: synthetic scenes",
    });
    this.buttons = JSON.parse(this.dataset.examples).map(example => {
      const button = make(list, "button", {
        type: "button", title: example.name, "data-seed": example.seed,
        "aria-label": `Example: ${example.name}`, "aria-pressed": "false",
      });
      make(button, "img", { src: example.src, alt: "" });
      button.onclick = () => this.choose(`example:${example.seed}`);
      return button;
    });
    this.input.onchange = () => this.take(this.input.files[0]);
    zone.ondragover = event => { event.preventDefault(); zone.classList.add("over"); };
    zone.ondragleave = () => zone.classList.remove("over");
    zone.ondrop = event => {
      event.preventDefault();
      zone.classList.remove("over");
      this.take(event.dataTransfer.files[0]);
    };
    this.onpaste = event => {
      const items = [...(event.clipboardData?.items ?? [])];
      const image = items.find(item => item.type.startsWith("image/"));
      if (image) this.take(image.getAsFile());
    };
    document.addEventListener("paste", this.onpaste);
  }

  disconnectedCallback() {
    document.removeEventListener("paste", this.onpaste);
  }

  async take(file) {
    if (!file) return;
    const { source, note } = await prepared(file);
    this.input.value = "";
    const most = Number(this.dataset.most); // bytes; base64 has four letters for three
    if (source.length * 0.75 > most + 100) {
      this.refuse(`The image has more than ${(most / 2 ** 20).toFixed(0)} MB; make it smaller first.`);
      return;
    }
    this.choose(source);
    this.note.textContent = note;
  }

  refuse(text) {
    this.note.textContent = text;
    this.note.setAttribute("role", "alert");
  }

  choose(value) {
    this.note.setAttribute("role", "status");
    this.show(value);
    this.dispatchEvent(new CustomEvent("chosen", { detail: value }));
  }

  // Show the image that is explained; the server may have set it.
  show(value) {
    if (value === this.shown) return;
    this.shown = value;
    const example = this.buttons.find(button => value === `example:${button.dataset.seed}`);
    for (const button of this.buttons) button.setAttribute("aria-pressed", button === example);
    this.note.textContent = "";
    const source = example ? example.firstChild.src : value.startsWith("data:") ? value : "";
    this.preview.hidden = !source;
    if (source) this.preview.src = source;
    this.preview.alt = example ? example.title : "The chosen image";
    this.hint.textContent = source
      ? "Drop, paste or choose another image" : "Drop an image here, paste one, or choose a file";
    if (value.startsWith("example:") && !example)
      this.note.textContent = `Scene ${value.slice("example:".length)}`;
  }
}

// An element that is drawn from the JSON in its attribute.
class Drawn extends HTMLElement {
  static observedAttributes = ["data-state"];

  // Gradio may change the attribute of an element that is there already.
  async attributeChangedCallback(_name, _before, text) {
    if (!text) return;
    const state = JSON.parse(text);
    this.state = state;
    const image = await loaded(state.src);
    if (this.state !== state) return;
    this.image = image;
    this.replaceChildren();
    this.build(state);
  }

  canvas(label) {
    const [height, width] = this.state.size;
    const canvas = make(this, "canvas", { role: "img", "aria-label": label, height, width });
    return canvas;
  }

  // The corner and the size of a patch on the canvas.
  cell(place) {
    const [top, left, bottom, right] = this.state.box;
    const [rows, columns] = this.state.grid;
    const width = (right - left) / columns, height = (bottom - top) / rows;
    const x = left + (place % columns) * width, y = top + Math.floor(place / columns) * height;
    return [x, y, width, height];
  }
}

class Reveal extends Drawn {
  build(state) {
    const canvas = this.canvas("The part of the image that the model sees");
    this.pen = canvas.getContext("2d");
    const steps = state.counts.length;
    this.plot = this.chart(state, steps);
    this.text = make(this, "output", { class: "gmar-reveal-text", "aria-live": "polite" });
    this.slider = make(this, "input", {
      type: "range", min: 0, max: steps - 1, step: 1, value: state.start,
      "aria-label": "Number of patches that the model sees, most relevant first",
    });
    this.slider.oninput = () => this.move(Number(this.slider.value));
    this.append(this.text);
    this.move(state.start);
  }

  // A line of the score over the number of patches, with a mark that moves.
  chart(state, steps) {
    const space = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(space, "svg");
    svg.setAttribute("viewBox", "0 0 100 24");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    this.places = state.heights.map((height, step) => [
      steps > 1 ? 1 + (98 * step) / (steps - 1) : 50, 22 - 20 * height,
    ]);
    const line = document.createElementNS(space, "polyline");
    line.setAttribute("points", this.places.map(place => place.join(",")).join(" "));
    const mark = document.createElementNS(space, "line");
    svg.append(line, mark);
    this.append(svg);
    return mark;
  }

  move(step) {
    const { state, pen } = this, [height, width] = state.size;
    pen.fillStyle = "#808080";
    pen.fillRect(0, 0, width, height);
    pen.save();
    pen.beginPath();
    state.ranks.forEach((rank, place) => {
      if (rank < state.counts[step]) pen.rect(...this.cell(place));
    });
    pen.clip();
    pen.drawImage(this.image, 0, 0, width, height);
    pen.restore();
    this.text.textContent = state.texts[step];
    this.slider.setAttribute("aria-valuetext", state.texts[step]);
    const [x] = this.places[step];
    for (const [name, value] of [["x1", x], ["x2", x], ["y1", 0], ["y2", 24]])
      this.plot.setAttribute(name, value);
  }
}

class Heads extends Drawn {
  build(state) {
    this.palette = bytes(state.palette);
    this.place = ""; // the patch that attends, or the tokens of the readout
    this.maps = new Map([["", { levels: bytes(state.levels), peaks: state.peaks }]]);
    const layers = state.importance.length, heads = state.importance[0].length;
    this.heads = heads;
    const highest = Math.max(...state.importance.flat());
    const scroll = make(this, "div", { class: "gmar-scroll" });
    const table = make(scroll, "table", { role: "grid", "aria-label": "Importance of each head" });
    make(table, "caption", {}, "Layers (top layer first) by heads");
    this.cells = new Map();
    for (let layer = layers - 1; layer >= 0; layer--) {
      const row = make(table, "tr");
      make(row, "th", { scope: "row" }, String(layer));
      for (let head = 0; head < heads; head++) {
        const value = state.importance[layer][head];
        const share = highest ? value / highest : 0;
        const level = Math.round(255 * share);
        const [red, green, blue] = this.palette.slice(3 * level, 3 * level + 3);
        const cell = make(row, "td");
        const button = make(cell, "button", {
          type: "button", tabindex: -1, "aria-pressed": "false",
          "aria-label": `Layer ${layer}, head ${head}: ${(100 * value).toFixed(0)}% of its layer`,
        }, heads <= 16 ? (100 * value).toFixed(0) : "");
        button.style.background = `rgb(${red} ${green} ${blue})`;
        button.style.color = luminance(red, green, blue) > 0.18 ? "#000" : "#fff";
        button.onclick = () => this.choose(layer, head);
        this.cells.set(`${layer},${head}`, button);
      }
    }
    const last = make(table, "tr");
    make(last, "td");
    for (let head = 0; head < heads; head++) make(last, "th", { scope: "col" }, String(head));
    table.onkeydown = event => this.walk(event);
    const side = make(this, "div", { class: "gmar-head-map" });
    this.pen = side.appendChild(this.canvas("")).getContext("2d");
    this.pen.canvas.onclick = event => this.point(event);
    this.text = make(side, "p", { role: "status" });
    this.places(side);
    this.choose(...state.start);
  }

  // The fields that name a patch, for those who can't click on it, and the way back.
  places(side) {
    const form = make(side, "form", { class: "gmar-place", "aria-label": "Attention of a patch" });
    const [rows, columns] = this.state.grid;
    make(form, "p", { class: "gmar-hint" },
      `Click on a patch to see where it looks, or name it: rows are 0 to ${rows - 1} from the top, `
      + `columns 0 to ${columns - 1} from the left.`);
    this.fields = ["Row", "Column"].map((name, axis) => {
      const label = make(form, "label", {}, name);
      return make(label, "input", {
        type: "number", min: 0, max: this.state.grid[axis] - 1, step: 1, required: "", value: 0,
      });
    });
    make(form, "button", { type: "submit" }, "Show where this patch looks");
    this.back = make(form, "button", { type: "button", hidden: "" }, "Back to the whole answer");
    form.onsubmit = event => {
      event.preventDefault();
      this.attend(...this.fields.map(field => Number(field.value)));
    };
    this.back.onclick = () => {
      this.fields[0].focus(); // the button that has it goes
      this.show("");
    };
  }

  // The patch under the pointer attends; parts that the model does not see have none.
  point(event) {
    const canvas = this.pen.canvas, [top, left, bottom, right] = this.state.box;
    const x = (event.offsetX / canvas.clientWidth) * canvas.width;
    const y = (event.offsetY / canvas.clientHeight) * canvas.height;
    const [rows, columns] = this.state.grid;
    const row = Math.floor(((y - top) / (bottom - top)) * rows);
    const column = Math.floor(((x - left) / (right - left)) * columns);
    if (row >= 0 && row < rows && column >= 0 && column < columns) this.attend(row, column);
  }

  // Ask the server for the attention of a patch, once.
  attend(row, column) {
    [this.fields[0].value, this.fields[1].value] = [row, column];
    const place = `${row},${column}`;
    this.wanted = place;
    if (this.maps.has(place)) this.show(place);
    else this.dispatchEvent(new CustomEvent("patch", { bubbles: true, detail: place }));
  }

  take({ place, levels, peaks }) {
    const name = place.join();
    this.maps.set(name, { levels: bytes(levels), peaks });
    if (name === this.wanted) this.show(name);
  }

  show(place) {
    this.place = this.wanted = place;
    this.back.hidden = place === "";
    this.choose(...this.chosen);
  }

  // Arrow keys go from head to head, as in a grid.
  walk(event) {
    const steps = {
      ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1],
    };
    const step = steps[event.key];
    if (!step) return;
    event.preventDefault();
    const [layer, head] = [this.chosen[0] + step[0], this.chosen[1] + step[1]];
    if (this.cells.has(`${layer},${head}`)) {
      this.choose(layer, head);
      this.cells.get(`${layer},${head}`).focus();
    }
  }

  choose(layer, head) {
    for (const button of this.cells.values()) {
      button.setAttribute("aria-pressed", "false");
      button.tabIndex = -1;
    }
    const button = this.cells.get(`${layer},${head}`);
    button.setAttribute("aria-pressed", "true");
    button.tabIndex = 0;
    this.chosen = [layer, head];
    this.draw(layer, head);
    const peak = (100 * this.maps.get(this.place).peaks[layer][head]).toPrecision(2);
    const bright = `The brightest patch gets ${peak}% of its attention.`;
    const of = `layer ${layer}, head ${head}`;
    if (this.place) {
      const [row, column] = this.place.split(",");
      const words = `ttention of patch row ${row}, column ${column} in ${of}`;
      this.text.textContent = `A${words}. ${bright}`;
      this.pen.canvas.setAttribute("aria-label", `The image under the a${words}`);
    } else {
      const share = (100 * this.state.importance[layer][head]).toFixed(1);
      this.text.textContent = `L${of.slice(1)}: ${share}% of its layer's weight for `
        + `${this.state.label}. ${bright}`;
      this.pen.canvas.setAttribute("aria-label", `The image under the attention of ${of}`);
    }
  }

  draw(layer, head) {
    const { state, pen } = this, [height, width] = state.size, [rows, columns] = state.grid;
    const small = document.createElement("canvas");
    small.width = columns;
    small.height = rows;
    const brush = small.getContext("2d"), picture = brush.createImageData(columns, rows);
    const first = (layer * this.heads + head) * rows * columns;
    const { levels } = this.maps.get(this.place);
    for (let place = 0; place < rows * columns; place++) {
      const level = levels[first + place];
      picture.data.set(this.palette.slice(3 * level, 3 * level + 3), 4 * place);
      picture.data[4 * place + 3] = 255;
    }
    brush.putImageData(picture, 0, 0);
    const [top, left, bottom, right] = state.box;
    pen.globalAlpha = 1;
    pen.drawImage(this.image, 0, 0, width, height);
    pen.globalAlpha = state.opacity;
    pen.imageSmoothingEnabled = true;
    pen.drawImage(small, left, top, right - left, bottom - top);
    pen.globalAlpha = 1;
    if (this.place) this.frame(...this.place.split(",").map(Number));
  }

  // A frame around a patch, in white on black, which is seen on all colours.
  frame(row, column) {
    const { pen } = this, [x, y, width, height] = this.cell(row * this.state.grid[1] + column);
    for (const [colour, line] of [["#000", 7], ["#fff", 3]]) {
      pen.strokeStyle = colour;
      pen.lineWidth = line;
      pen.strokeRect(x, y, width, height);
    }
  }
}

// Hands the attention of a patch, when the server has it, to the heads.
class Attention extends HTMLElement {
  static observedAttributes = ["data-state"];

  attributeChangedCallback(_name, _before, text) {
    if (text) document.querySelector("gmar-heads")?.take(JSON.parse(text));
  }
}

// Keeps the state of the page in its address, so that a link leads to it.
class Link extends HTMLElement {
  static observedAttributes = ["href"];

  attributeChangedCallback(_name, _before, href) {
    const query = new URLSearchParams(href.slice(1));
    const theme = new URLSearchParams(location.search).get("__theme");
    if (theme) query.set("__theme", theme);
    const text = query.toString();
    history.replaceState(null, "", text ? `?${text}` : location.pathname);
  }
}

customElements.define("gmar-upload", Upload);
customElements.define("gmar-reveal", Reveal);
customElements.define("gmar-heads", Heads);
customElements.define("gmar-attention", Attention);
customElements.define("gmar-link", Link);
