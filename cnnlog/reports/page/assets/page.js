(() => {
  "use strict";
  const $ = (id) => document.getElementById(id);
  const root = document.documentElement;
  const data = JSON.parse($("data").textContent);
  if (typeof DecompressionStream !== "function") {
    $("old").hidden = false;
    return;
  }
  root.classList.add("scripted");

  const WIDTH = 350;
  const RGB_GAP = 0xff000000;
  const UNPACKED_AT_MOST = 256e6;
  const PAUSE = 250; // ms between two frames, above which nobody was looking
  const last = data.steps.length - 1;
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const state = {
    i: last, runs: data.sides.map(() => true), mode: "side", show: "both", image: 0, edge: 50, life: null,
  };

  // ---- frames: unpacked when first looked at

  const colours = {};
  for (const [name, text] of Object.entries(data.palettes)) {
    const bytes = bytesOf(text);
    colours[name] = Uint32Array.from({ length: bytes.length / 3 }, (_, c) =>
      (0xff000000 | (bytes[3 * c + 2] << 16) | (bytes[3 * c + 1] << 8) | bytes[3 * c]) >>> 0);
  }
  const unpacked = new Map();
  let unpackedBytes = 0;

  function bytesOf(text) {
    const raw = atob(text);
    const bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    return bytes;
  }

  async function inflate(id) {
    const packed = bytesOf($(id).textContent.trim());
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  /** The frames of a reel, once they are there; `then` is called when they come later. */
  function framesOf(reel, then) {
    const known = unpacked.get(reel.block);
    if (known) {
      unpacked.delete(reel.block);
      unpacked.set(reel.block, known); // most recently used goes last
      if (!known.bytes && then) known.waiting.add(then);
      return known.bytes;
    }
    const entry = { bytes: null, waiting: new Set(then ? [then] : []) };
    unpacked.set(reel.block, entry);
    inflate(reel.block).then((bytes) => {
      const size = bytes.length / reel.steps.length;
      for (let i = size; i < bytes.length; i++) bytes[i] += bytes[i - size];
      entry.bytes = bytes;
      unpackedBytes += bytes.length;
      for (const [id, other] of unpacked) {
        if (unpackedBytes <= UNPACKED_AT_MOST) break;
        if (other.bytes && id !== reel.block) {
          unpackedBytes -= other.bytes.length;
          unpacked.delete(id);
        }
      }
      for (const call of entry.waiting) call();
      entry.waiting.clear();
    });
    return null;
  }

  function factorOf(layout, columns, width) {
    const cell = Math.max(1, Math.floor((width - (columns - 1)) / columns));
    return Math.max(1, Math.floor(cell / Math.max(layout.h, layout.w)));
  }

  /**
   * Draw cells, each `[frame, cell]`, in rows of `columns`, enlarged by `factor`, a gap of 1 px between them.
   * With a `pitch`, columns are so many pixels apart, each cell in the middle of its column.
   */
  function compose(canvas, reel, bytes, cells, columns, factor, pitch) {
    const { h, w } = reel.layout;
    const wide = pitch || w * factor + 1, high = h * factor + 1, inset = (wide - w * factor) >> 1;
    const width = columns * wide - 1, height = Math.ceil(cells.length / columns) * high - 1;
    if (canvas.width !== width || canvas.height !== height || !canvas.picture) {
      canvas.width = width;
      canvas.height = height;
      canvas.picture = canvas.getContext("2d").createImageData(width, height);
      canvas.pixels = new Uint32Array(canvas.picture.data.buffer);
    }
    const out = canvas.pixels;
    const planes = reel.rgb ? 3 : 1;
    const from = reel.layout.columns, row = from * (w + 1) - 1;
    const size = bytes.length / reel.steps.length;
    const palette = reel.rgb ? null : colours[reel.palette];
    const edge = palette ? palette[data.gap] : RGB_GAP;
    out.fill(inset ? 0 : edge);
    cells.forEach(([frame, cell], place) => {
      if (frame < 0) return;
      const start = frame * size + planes * (Math.floor(cell / from) * (h + 1) * row + (cell % from) * (w + 1));
      const corner = Math.floor(place / columns) * high * width + (place % columns) * wide + inset;
      for (let y = -1; inset && y <= h * factor; y++) { // a frame, for cells that stand apart
        const line = corner + y * width;
        if (line > 0) out.fill(edge, line - 1, Math.min(line + w * factor + 1, line - line % width + width));
      }
      for (let y = 0; y < h; y++) {
        let to = corner + y * factor * width;
        const line = to;
        for (let x = 0; x < w; x++) {
          const at = start + planes * (y * row + x);
          const colour = palette ? palette[bytes[at]]
            : (0xff000000 | (bytes[at + 2] << 16) | (bytes[at + 1] << 8) | bytes[at]) >>> 0;
          for (let f = 0; f < factor; f++) out[to++] = colour;
        }
        for (let f = 1; f < factor; f++) out.copyWithin(line + f * width, line, to);
      }
    });
    canvas.getContext("2d").putImageData(canvas.picture, 0, 0);
  }

  // ---- the grids of the layers

  const number = (value) => {
    if (value === null || !Number.isFinite(value)) return "–";
    const rounded = Number(value.toPrecision(3));
    return (rounded && Math.abs(rounded) < 1e-4 ? rounded.toExponential() : String(rounded)).replaceAll("-", "−");
  };
  const make = (tag, attributes = {}, text) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return element;
  };

  function stepText(side, own) {
    if (side !== null && data.sides[side].last === null) return ""; // weights have no steps
    if (side !== null && data.sides[side].pinned) return `${data.unit} ${own}`; // the one step that is compared
    const held = own !== data.steps[state.i];
    return `${data.unit} ${own}${held ? (side !== null && data.sides[side].last === own ? " (its last)" : " (held)") : ""}`;
  }

  class Picture {
    constructor(figure) {
      this.figure = figure;
      Object.assign(this, data.pictures[figure.dataset.picture]);
      this.title = figure.querySelector(".name").textContent;
      this.when = figure.querySelector(".when");
      this.seen = false;
      this.redraw = () => this.seen && this.draw();
      this.drawn = null;
      this.box = figure.querySelector(".box");
      this.canvas = make("canvas", { role: "img" });
      this.spot = make("span", { class: "spot" });
      this.box.append(this.spot);
      if (this.side !== null) this.box.append(make("span", { class: "edge" }));
      this.box.tabIndex = 0;
      this.box.setAttribute("role", "button");
      this.box.addEventListener("click", (event) => { if (!dragged) openLife(this.layer, this.channelAt(event) ?? 0); });
      this.box.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault(); // the same key would press the button that the dialog puts the focus on
        openLife(this.layer, 0);
      });
      this.box.addEventListener("pointermove", (event) => point(this, this.channelAt(event)));
      this.box.addEventListener("pointerleave", () => point(this, null));
      watching.observe(figure);
    }

    get reel() { return this.reels[Math.min(state.image, this.reels.length - 1)]; }

    draw() {
      const reel = this.reel, frame = reel.at[state.i];
      if (this.drawn && this.drawn.reel === reel && this.drawn.frame === frame) return this.caption(frame);
      const bytes = framesOf(reel, this.redraw);
      if (!bytes) return;
      const { n, k, columns } = reel.layout;
      this.factor = factorOf(reel.layout, columns, WIDTH);
      compose(this.canvas, reel, bytes, Array.from({ length: n * k }, (_, c) => [frame, c]), columns, this.factor);
      if (!this.drawn) {
        this.box.querySelector("img").replaceWith(this.canvas);
        this.box.style.setProperty("--w", `${this.canvas.width}px`);
      }
      this.drawn = { reel, frame };
      this.caption(frame);
    }

    caption(frame) {
      const reel = this.reel;
      const what = frame < 0 ? "nothing yet" : stepText(this.side, reel.steps[frame]);
      if (this.said === what) return;
      this.said = what;
      this.when.textContent = what;
      this.figure.dataset.step = frame < 0 ? "" : reel.steps[frame];
      const kind = this.kind === "filters" ? "Filters" : "Feature maps";
      const { n, h, w } = reel.layout;
      this.canvas.setAttribute("aria-label",
        `${kind} of ${data.layers[this.layer].name}, ${this.title}, ${what}: ${n} of ${h} by ${w} pixels`);
      this.box.setAttribute("aria-label", `${kind} of ${data.layers[this.layer].name}, ${this.title}: open a filter`);
    }

    channelAt(event) {
      if (!this.drawn) return null;
      const { n, k, h, w, columns } = this.reel.layout;
      const place = this.canvas.getBoundingClientRect();
      const x = (event.clientX - place.left) / place.width * (this.canvas.width + 1);
      const y = (event.clientY - place.top) / place.height * (this.canvas.height + 1);
      const column = Math.floor(x / (w * this.factor + 1)), row = Math.floor(y / (h * this.factor + 1));
      const channel = k > 1 ? row : row * columns + column;
      return column >= 0 && column < columns && row >= 0 && channel < n ? channel : null;
    }

    mark(channel) {
      const { n, k, h, w, columns } = this.reel.layout;
      const shown = channel !== null && channel < n && this.drawn;
      this.spot.style.display = shown ? "block" : "none";
      if (!shown) return;
      const row = k > 1 ? channel : Math.floor(channel / columns), column = k > 1 ? 0 : channel % columns;
      const wide = w * this.factor + 1, high = h * this.factor + 1;
      const scale = this.canvas.clientWidth / this.canvas.width;
      Object.assign(this.spot.style, {
        left: `${column * wide * scale}px`, top: `${row * high * scale}px`,
        width: `${((k > 1 ? columns * wide : wide) - 1) * scale}px`, height: `${(high - 1) * scale}px`,
      });
    }
  }

  /** The range of one channel, in the numbers at the ends of a scale. */
  const rangeOf = (reel, channel) => {
    const high = number(reel.high[channel]);
    return [reel.symmetric ? `−${high}` : "0", high];
  };

  function point(picture, channel) {
    for (const other of pictures) if (other.layer === picture.layer) other.mark(channel);
    const noun = picture.kind === "filters" ? "filter" : "map";
    const range = channel === null || channel >= picture.reel.layout.n ? "" : `: ${rangeOf(picture.reel, channel).join(" to ")}`;
    picture.box.title = channel === null ? "" : `${noun} ${channel}${range}`;
  }

  const watching = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const picture = pictures.find((one) => one.figure === entry.target);
      if (!picture) continue;
      picture.seen = entry.isIntersecting;
      if (picture.seen) picture.draw();
    }
  }, { rootMargin: "400px 0px" });
  let dragged = false;
  const pictures = [...document.querySelectorAll("[data-picture]")]
    .filter((figure) => figure.querySelector(".box")).map((figure) => new Picture(figure));

  // ---- step, play, address

  let asked = false;
  function update() {
    const step = data.steps[state.i];
    $("step").value = state.i;
    $("step").setAttribute("aria-valuetext", `${data.unit} ${step}`);
    $("now").replaceChildren(`${data.unit} `, make("b", {}, step), ` of ${data.steps[last]}`);
    for (const picture of pictures) if (picture.seen && !picture.figure.hidden) picture.draw();
    moveCursors();
    drawSheet();
    updateLife();
    remember();
  }

  /** Show another step; drawn with the browser's next frame, however many events arrive before it. */
  function go(i) {
    state.i = Math.min(last, Math.max(0, i));
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      update();
    });
  }

  let playing = null, before = 0, due = 0;
  function play(on) {
    $("play").setAttribute("aria-pressed", on);
    $("play").setAttribute("aria-label", on ? "Pause" : "Play");
    $("play").firstElementChild.textContent = on ? "❚❚" : "▶";
    if (playing !== null) cancelAnimationFrame(playing);
    playing = null;
    if (!on) return;
    if (state.i === last) go(0);
    before = performance.now();
    due = 0;
    const tick = (now) => {
      // a tab that was hidden, or a slow drawing, goes on where it was rather than leaping ahead
      due += Math.min(now - before, PAUSE) / 1000 * Number($("speed").value);
      before = now;
      const whole = Math.floor(due);
      due -= whole;
      if (whole > 0) {
        if (state.i >= last) return play(false);
        go(state.i + whole);
      }
      playing = requestAnimationFrame(tick);
    };
    playing = requestAnimationFrame(tick);
  }

  let remembering = null, told = location.hash;
  function remember() {
    clearTimeout(remembering);
    if (location.protocol === "about:") return; // in a frame without an address: "#" would be that of the page around it
    remembering = setTimeout(() => {
      const address = addressOf();
      // Another address than the page was last told has just been given: its event is on the way, and it counts.
      if (location.hash !== told || told === address) return;
      try {
        history.replaceState(null, "", address);
      } catch {
        location.replace(address);
      }
      told = location.hash;
    }, 120);
  }

  function addressOf() {
    const parts = [`step=${data.steps[state.i]}`];
    parts.push(`runs=${data.sides.filter((_, s) => state.runs[s]).map((side) => encodeURIComponent(side.label)).join(",")}`);
    if (state.mode !== "side") parts.push(`mode=${state.mode}`);
    if (state.show !== "both") parts.push(`show=${state.show}`);
    if (state.image) parts.push(`image=${state.image + 1}`);
    if (state.life) parts.push(`life=${encodeURIComponent(data.layers[state.life.layer].name)}:${state.life.channel}`);
    return `#${parts.join("&")}`;
  }

  function recall() {
    const found = {};
    for (const part of location.hash.slice(1).split("&")) {
      const [key, value] = part.split("=");
      if (value !== undefined) found[key] = value;
    }
    const read = (text) => {
      try { return decodeURIComponent(text); } catch { return text; }
    };
    if (found.step !== undefined && Number.isFinite(Number(found.step))) {
      const wanted = Number(found.step);
      let nearest = 0;
      data.steps.forEach((step, i) => {
        if (Math.abs(step - wanted) < Math.abs(data.steps[nearest] - wanted)) nearest = i;
      });
      state.i = nearest;
      // what is usual stands in no address
      Object.assign(state, { mode: "side", show: "both", image: 0 });
    }
    if (found.runs !== undefined) {
      const labels = found.runs.split(",").map(read);
      const runs = data.sides.map((side) => labels.includes(side.label));
      if (runs.some(Boolean)) state.runs = runs;
    }
    if (["side", "swipe", "blink"].includes(found.mode)) state.mode = found.mode;
    if (["both", "filters", "maps"].includes(found.show)) state.show = found.show;
    if (Number(found.image) >= 1 && Number(found.image) <= data.images) state.image = Number(found.image) - 1;
    if (found.life) {
      const cut = found.life.lastIndexOf(":");
      const layer = data.layers.findIndex((one) => one.name === read(found.life.slice(0, cut)));
      const channel = Number(found.life.slice(cut + 1));
      if (layer >= 0 && Number.isInteger(channel)) openLife(layer, channel);
    }
  }

  // ---- side by side, swipe, blink; which runs, which image, which kinds

  let blinking = null;
  function arrange() {
    for (const figure of document.querySelectorAll("[data-side]")) figure.hidden = !state.runs[figure.dataset.side];
    for (const group of document.querySelectorAll(".pictures")) {
      for (const figure of group.querySelectorAll("[data-of]")) {
        figure.hidden = !(state.runs[0] && state.runs[figure.dataset.of]);
      }
      const shown = [...group.querySelectorAll("[data-side]")].filter((figure) => !figure.hidden && figure.querySelector(".box"));
      for (const figure of group.children) figure.classList.remove("pair-a", "pair-b");
      if (shown.length < 2 || state.mode === "side") continue;
      shown[0].classList.add("pair-a");
      shown[1].classList.add("pair-b");
      const [one, other] = shown.slice(0, 2).map((figure) => figure.querySelector(".scale").textContent);
      group.classList.toggle("unlike", one !== other); // two ranges over one another: both are told
    }
    document.body.dataset.mode = state.mode;
    document.body.dataset.show = state.show;
    for (const button of document.querySelectorAll("[data-mode]")) {
      if (button.tagName === "BUTTON") button.setAttribute("aria-pressed", button.dataset.mode === state.mode);
    }
    for (const button of $("runs").children) button.setAttribute("aria-pressed", state.runs[button.dataset.run]);
    $("edge-label").hidden = state.mode !== "swipe";
    $("show").value = state.show;
    if ($("image")) $("image").value = state.image;
    clearInterval(blinking);
    document.body.classList.remove("second");
    if (state.mode === "blink") {
      blinking = setInterval(() => document.body.classList.toggle("second"), calm ? 1500 : 700);
    }
  }

  function set(changes) {
    Object.assign(state, changes);
    arrange();
    update();
  }

  function setEdge(percent) {
    state.edge = Math.min(100, Math.max(0, percent));
    $("edge").value = state.edge;
    root.style.setProperty("--edge", `${state.edge}%`);
  }

  for (const picture of pictures) {
    let from = null;
    picture.box.addEventListener("pointerdown", (event) => {
      dragged = false;
      from = state.mode === "swipe" && picture.figure.classList.contains("pair-a") ? event.clientX : null;
      if (from !== null) picture.box.setPointerCapture(event.pointerId);
    });
    picture.box.addEventListener("pointermove", (event) => {
      if (from === null || (!dragged && Math.abs(event.clientX - from) < 4)) return;
      dragged = true;
      const place = picture.canvas.getBoundingClientRect();
      setEdge(100 * (event.clientX - place.left) / place.width);
    });
    picture.box.addEventListener("pointerup", () => { from = null; });
    picture.box.addEventListener("pointercancel", () => { from = null; });
  }

  // ---- curves

  const SVG = "http://www.w3.org/2000/svg";
  const draw = (tag, attributes, text) => {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return element;
  };
  function addCursor(chart) {
    const cursor = draw("path", { class: "cursor" });
    chart.append(cursor);
    return { cursor, ...Object.fromEntries(Object.entries(chart.dataset).map(([k, v]) => [k, Number(v)])) };
  }
  const cursors = [...document.querySelectorAll(".measure .chart")].map(addCursor);
  let lifeCursors = [];

  function moveCursors() {
    const step = data.steps[state.i];
    for (const { cursor, first, last: end, left, right, top, bottom } of [...cursors, ...lifeCursors]) {
      const x = left + (end > first ? (step - first) / (end - first) : 0) * (right - left);
      cursor.setAttribute("d", step < first || step > end ? "" : `M${x.toFixed(1)} ${top}V${bottom}`);
    }
    readOut();
  }

  let picked = null;
  function pick(layer) {
    picked = picked === layer ? null : layer;
    document.body.classList.toggle("picking", picked !== null);
    for (const key of $("legend").children) key.setAttribute("aria-pressed", Number(key.dataset.layer) === picked);
    for (const line of document.querySelectorAll(".measure .lines path")) {
      line.classList.toggle("picked", Number(line.dataset.layer) === picked);
    }
    readOut();
  }

  /** What the curves of the picked layer are at this step, beside each measure's name. */
  function readOut() {
    const step = data.steps[state.i];
    for (const measure of document.querySelectorAll(".measure")) {
      let text = "";
      if (picked !== null) {
        const sides = data.curves[measure.dataset.measure][picked];
        text = data.sides.map((side, s) => {
          const points = (sides[s] || []).filter(([at]) => at <= step);
          return points.length ? `${side.letter} ${number(points[points.length - 1][1])}` : null;
        }).filter(Boolean).join(" · ");
        text = ` ${data.layers[picked].name}: ${text || "–"}`;
      }
      let out = measure.querySelector("h3 .soft");
      if (!out) measure.querySelector("h3").append((out = make("span", { class: "soft" })));
      out.textContent = text;
    }
  }

  for (const key of document.querySelectorAll("#legend .key")) {
    key.setAttribute("aria-pressed", "false");
    key.addEventListener("click", () => pick(Number(key.dataset.layer)));
  }
  for (const line of document.querySelectorAll(".measure .lines path")) {
    line.style.cursor = "pointer";
    line.addEventListener("click", () => pick(Number(line.dataset.layer)));
  }

  // ---- numbers of each filter

  const known = new Map();
  /** Numbers of one layer of one side: name -> frame -> channel; null where there are none. */
  async function numbersOf(layer, side) {
    const entry = data.numbers[layer]?.[side];
    if (!entry) return null;
    if (!known.has(entry.block)) {
      known.set(entry.block, inflate(entry.block).then((bytes) => {
        const frames = entry.steps.length, found = {};
        entry.measures.forEach(({ name, low, high, n }, m) => {
          const start = entry.measures.slice(0, m).reduce((sum, one) => sum + 2 * frames * one.n, 0);
          found[name] = Array.from({ length: frames }, (_, f) => Array.from({ length: n }, (_, c) => {
            const at = start + f * n + c;
            const whole = bytes[at] * 256 + bytes[at + frames * n];
            return whole === 65535 ? NaN : low + (high - low) * whole / 65534;
          }));
        });
        return { steps: entry.steps, at: entry.at, ...found };
      }));
    }
    return known.get(entry.block);
  }

  // ---- the life of a filter

  const LIFE_LEFT = 48; // pixels left of the first column's middle: room for the numbers of the curves
  const life = $("life");
  let lifeToken = 0;
  let films = [];
  let lifeNumbers = [];

  function picturesOf(layer, kind) {
    return pictures.filter((one) => one.layer === layer && one.side !== null && (!kind || one.kind === kind));
  }

  function cellsOf(reel, channel, frame) {
    const { k } = reel.layout;
    return Array.from({ length: k }, (_, c) => [frame, channel * k + c]);
  }

  function channelsOf(layer) {
    return Math.max(1, ...picturesOf(layer).map((one) => one.reel.layout.n));
  }

  function openLife(layer, channel) {
    const n = channelsOf(layer);
    state.life = { layer, channel: ((channel % n) + n) % n };
    if (!life.open) life.showModal();
    fillLife();
    remember();
  }

  /** Every so many steps, the most columns that fit; to the last step, if four columns or more can be had so. */
  function strideOf(most) {
    const first = data.steps[0], span = data.steps[last] - first;
    let unit = 0;
    for (let i = 1; i <= last; i++) {
      let one = unit, other = data.steps[i] - data.steps[i - 1];
      while (other) [one, other] = [other, one % other];
      unit = one;
    }
    if (!span) return 1;
    let fitting = 0;
    for (let stride = unit; stride <= span; stride += unit) {
      if (Math.floor(span / stride) + 1 > most) continue;
      fitting = fitting || stride;
      if (span / stride < 3) break;
      if (span % stride === 0) return stride;
    }
    return fitting || span;
  }

  /** One x axis for the strips and the curves of a life: where it begins, and how many pixels apart columns are. */
  function axisOf(layer) {
    const width = Math.min(1000, life.clientWidth - 44), room = width - LIFE_LEFT - 8;
    const widest = Math.max(36, ...picturesOf(layer).map((one) => one.reel.layout.w));
    const stride = strideOf(Math.max(2, Math.floor(room / (widest + 1) + 0.5)));
    const first = data.steps[0], span = data.steps[last] - first;
    const pitch = Math.max(widest + 1, Math.min(85, Math.floor(room / (span / stride + 0.5))));
    const at = Array.from({ length: Math.floor(span / stride) + 1 }, (_, c) => first + c * stride);
    return { width, pitch, stride, steps: at, x: (step) => LIFE_LEFT + (step - first) / stride * pitch };
  }

  /** The position of the page's step that stands at a step: the last one that is not after it. */
  const standing = (step) => data.steps.findLastIndex((one) => one <= step);

  async function fillLife() {
    const token = ++lifeToken;
    const { layer, channel } = state.life;
    const filters = data.layers[layer].filters, axis = axisOf(layer);
    $("life-title").textContent = `${data.layers[layer].name} · ${filters ? "filter" : "channel"} ${channel}`;
    const body = $("life-body");
    body.replaceChildren();
    films = [];
    lifeCursors = [];
    lifeNumbers = [];
    updateLife();
    for (const kind of ["filters", "feature_maps"]) {
      for (const picture of picturesOf(layer, kind)) {
        if (!state.runs[picture.side] || channel >= picture.reel.layout.n) continue;
        body.append(filmOf(picture, channel, token, axis));
      }
    }
    const numbers = await Promise.all(data.sides.map((_, side) => numbersOf(layer, side)));
    if (token !== lifeToken) return;
    lifeNumbers = numbers;
    const charts = make("div", { class: "life-charts" });
    for (const [name, title] of [["angle", "Angle from its own baseline (degrees)"], ["norm", "Norm (L2)"],
      ["active", "Active share of its feature map on the probe"]]) {
      const curves = lifeNumbers.map((numbers, side) => state.runs[side] && numbers?.[name]?.[0].length > channel
        ? { side, points: numbers.steps.map((step, f) => [step, numbers[name][f][channel]]) } : null).filter(Boolean);
      if (curves.length) charts.append(lifeChart(title, curves, axis));
    }
    body.append(charts);
    updateLife();
    moveCursors();
  }

  function badge(side) {
    return make("span", { class: `badge s${side % 5}` }, data.sides[side].letter);
  }

  /** A scale of one channel: its two numbers, and the colours between them. */
  function scaleFor(reel, channel) {
    const [low, high] = rangeOf(reel, channel);
    const scale = make("span", { class: "scale" });
    scale.append(make("span", { class: "low" }, low),
      make("span", { class: `bar ${reel.rgb ? "rgb" : reel.palette}`, "aria-hidden": "true" }), make("span", { class: "high" }, high));
    return scale;
  }

  function filmOf(picture, channel, token, axis) {
    const section = make("section", { class: "strip" });
    const what = picture.kind === "filters"
      ? picture.reel.layout.k > 1 ? `the filter, one row an input channel (the first ${picture.reel.layout.k})` : "the filter"
      : "its feature map on the probe";
    const head = make("p");
    head.append(badge(picture.side), ` ${data.sides[picture.side].label} `, make("span", { class: "soft" }, `${what}, every ${axis.stride > 1 ? `${axis.stride} ${data.unit}s` : data.unit}`), scaleFor(picture.reel, channel));
    const track = make("div", { class: "track" });
    const film = make("div", { class: "film" });
    const canvas = make("canvas", { role: "img",
      "aria-label": `${data.layers[picture.layer].name}, channel ${channel}, ${data.sides[picture.side].label}: ${what} over all steps` });
    const mark = make("span", { class: "at" });
    film.append(canvas, mark);
    track.append(film);
    section.append(head, track);
    const fill = () => {
      if (token !== lifeToken) return;
      const reel = picture.reel, { h, w, k } = reel.layout;
      const bytes = framesOf(reel, fill);
      if (!bytes) return;
      const factor = Math.max(1, Math.floor(Math.min(k > 1 ? 24 : 84, axis.pitch - 1) / Math.max(h, w)));
      const cells = [];
      for (let c = 0; c < k; c++) {
        for (const step of axis.steps) cells.push([reel.at[standing(step)], channel * k + c]);
      }
      compose(canvas, reel, bytes, cells, axis.steps.length, factor, axis.pitch);
      film.style.marginLeft = `${axis.x(data.steps[0]) - axis.pitch / 2}px`;
      film.onclick = (event) => {
        const step = data.steps[0] + ((event.clientX - canvas.getBoundingClientRect().left) / axis.pitch - 0.5) * axis.stride;
        const near = data.steps.map((one) => Math.abs(one - step));
        go(near.indexOf(Math.min(...near)));
      };
      films.push({ mark, axis });
      updateLife();
    };
    fill();
    return section;
  }

  function updateLife() {
    if (!state.life || !life.open) return;
    for (const { mark, axis } of films) {
      mark.style.left = `${(data.steps[state.i] - data.steps[0]) / axis.stride * axis.pitch}px`;
      mark.style.width = `${axis.pitch - 1}px`;
    }
    const channel = state.life.channel;
    const said = lifeNumbers.map((numbers, side) => {
      if (!numbers || !state.runs[side] || numbers.at[state.i] < 0) return null;
      const value = (name) => numbers[name]?.[numbers.at[state.i]][channel];
      const parts = [["angle", "turned °"], ["norm", "norm"], ["active", "active share"]]
        .filter(([name]) => value(name) !== undefined).map(([name, word]) => `${word} ${number(value(name))}`);
      return `${data.sides[side].letter}: ${parts.join(", ")}`;
    }).filter(Boolean);
    $("life-now").textContent = [`${data.unit} ${data.steps[state.i]}`, ...said].join(" · ");
  }

  function ticks(low, high, about) {
    const raw = (high - low) / about, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= raw * (1 - 1e-9));
    const found = [];
    for (let t = Math.floor(low / step + 1e-9); t <= Math.ceil(high / step - 1e-9); t++) found.push(Number((t * step).toPrecision(12)));
    return found;
  }

  function lifeChart(title, curves, { width, x, steps, pitch }) {
    const height = 130, top = 8, bottom = height - 30;
    const values = curves.flatMap(({ points }) => points.map(([, v]) => v)).filter(Number.isFinite);
    const y1 = Math.max(...values, 0), marks = ticks(0, y1 > 0 ? y1 : 1, 4), high = marks[marks.length - 1];
    const first = data.steps[0], end = data.steps[last], left = x(first), right = x(end);
    const y = (value) => bottom - value / high * (bottom - top);
    const panel = make("figure", { class: "panel" });
    panel.append(make("p", {}, title));
    const chart = draw("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": title,
      "data-first": first, "data-last": end, "data-left": left, "data-right": right, "data-top": top, "data-bottom": bottom });
    for (const mark of marks) {
      const grid = draw("g", { class: "grid" });
      grid.append(draw("path", { d: `M${left} ${y(mark).toFixed(1)}H${Math.max(right, left + 1)}` }));
      const text = draw("g", { class: "ticks y" });
      text.append(draw("text", { x: left - 6, y: y(mark) + 3.5 }, number(mark)));
      chart.append(grid, text);
    }
    const below = draw("g", { class: "ticks x" });
    const every = Math.ceil(9 * String(end).length / pitch); // labels that would touch are left out
    steps.forEach((step, c) => c % every || below.append(draw("text", { x: x(step), y: bottom + 14 }, step)));
    chart.append(below, draw("path", { class: "axis", d: `M${left} ${top}V${bottom}H${right}` }),
      draw("text", { class: "unit", x: (left + right) / 2, y: height - 2 }, data.unit));
    const lines = draw("g", { class: "lines" });
    for (const { side, points } of curves) {
      let pen = "M", d = "";
      for (const [step, value] of points) {
        if (Number.isFinite(value)) { d += `${pen}${x(step).toFixed(1)} ${y(value).toFixed(1)}`; pen = "L"; } else pen = "M";
      }
      const line = draw("path", { d, class: side ? "dashed" : "", style: `--c:var(--s${side % 5})` });
      line.append(draw("title", {}, data.sides[side].label));
      lines.append(line);
    }
    chart.append(lines);
    panel.append(chart);
    const legend = make("p", { class: "soft" });
    for (const { side } of curves) legend.append(badge(side), ` ${data.sides[side].label}  `);
    panel.append(legend);
    lifeCursors.push(addCursor(chart));
    return panel;
  }

  life.addEventListener("close", () => {
    if (life.open) return; // opened again before this event came
    state.life = null;
    lifeToken++;
    films = [];
    lifeCursors = [];
    remember();
  });
  life.addEventListener("click", (event) => { if (event.target === life) life.close(); });
  addEventListener("resize", () => { if (life.open) fillLife(); });
  const nextFilter = (by) => openLife(state.life.layer, state.life.channel + by);
  $("life-before").addEventListener("click", () => nextFilter(-1));
  $("life-after").addEventListener("click", () => nextFilter(1));

  // ---- the filters that moved most

  const sheet = $("sheet");
  let cards = [], sheetSeen = false;
  new IntersectionObserver((entries) => {
    sheetSeen = entries[entries.length - 1].isIntersecting;
    drawSheet();
  }, { rootMargin: "300px 0px" }).observe(sheet);

  function fillSheet() {
    const side = Number($("moved-side").value), layer = $("moved-layer").value;
    const rows = (data.moved[side] || []).filter((row) => layer === "" || row[0] === Number(layer)).slice(0, 36);
    cards = [];
    sheet.replaceChildren(...rows.map(([at, channel, angle]) => {
      const card = make("button", { type: "button", class: "card" });
      card.append(make("b", {}, data.layers[at].name), make("span", { class: "soft" }, `filter ${channel} · turned ${number(angle)}°`));
      const thumbs = make("span", { class: "thumbs" });
      const own = picturesOf(at, "filters");
      const add = (picture, now) => {
        const figure = make("figure"), canvas = make("canvas", { role: "img" });
        const text = now ? `${data.sides[picture.side].letter} now` : `${data.sides[picture.side].letter} first`;
        canvas.setAttribute("aria-label", `${data.layers[at].name}, filter ${channel}, ${text}`);
        figure.append(canvas, make("span", {}, text));
        thumbs.append(figure);
        cards.push({ picture, canvas, channel, now });
      };
      const chosen = own.find((one) => one.side === side);
      if (chosen) add(chosen, false);
      for (const picture of [chosen, ...own.filter((one) => one.side !== side)]) {
        if (picture && (picture === chosen || state.runs[picture.side])) add(picture, true);
      }
      card.append(thumbs);
      card.addEventListener("click", () => openLife(at, channel));
      return card;
    }));
    drawSheet();
  }

  function drawSheet() {
    if (!sheetSeen) return;
    for (const card of cards) {
      const reel = card.picture.reel, frame = card.now ? reel.at[state.i] : 0;
      if (card.frame === frame || card.channel >= reel.layout.n) continue;
      const bytes = framesOf(reel, drawSheet);
      if (!bytes) continue;
      const columns = Math.ceil(Math.sqrt(reel.layout.k));
      const factor = Math.max(1, Math.floor(66 / (columns * Math.max(reel.layout.w, reel.layout.h))));
      compose(card.canvas, reel, bytes, cellsOf(reel, card.channel, frame), columns, factor);
      card.frame = frame;
    }
  }

  // ---- hands

  $("step").addEventListener("input", (event) => go(Number(event.target.value)));
  $("play").addEventListener("click", () => play(playing === null));
  for (const button of document.querySelectorAll("button[data-mode]")) {
    button.addEventListener("click", () => set({ mode: button.dataset.mode }));
  }
  for (const button of $("runs").children) {
    button.addEventListener("click", () => {
      const runs = state.runs.map((on, s) => s === Number(button.dataset.run) ? !on : on);
      if (runs.some(Boolean)) {
        set({ runs });
        fillSheet();
      }
    });
  }
  $("show").addEventListener("change", (event) => set({ show: event.target.value }));
  if ($("image")) $("image").addEventListener("change", (event) => set({ image: Number(event.target.value) }));
  $("edge").addEventListener("input", (event) => setEdge(Number(event.target.value)));
  $("moved-side").addEventListener("change", fillSheet);
  $("moved-layer").addEventListener("change", fillSheet);

  $("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    try { localStorage.setItem("cnnlog-theme", root.dataset.theme); } catch { /* a page from disk may keep nothing */ }
  });
  try {
    const kept = localStorage.getItem("cnnlog-theme");
    if (kept === "dark" || kept === "light") root.dataset.theme = kept;
  } catch { /* as above */ }

  document.addEventListener("keydown", (event) => {
    const target = event.target;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const slider = target === $("step");
    if (!slider && (["SELECT", "TEXTAREA"].includes(target.tagName) || target.tagName === "INPUT")) return;
    const scrolls = target.classList?.contains("scroll") && target.scrollWidth > target.clientWidth;
    const by = event.shiftKey ? 10 : 1;
    const keys = {
      ArrowRight: () => go(state.i + by),
      ArrowLeft: () => go(state.i - by),
      p: () => play(playing === null),
      1: () => set({ mode: "side" }),
      2: () => set({ mode: "swipe" }),
      3: () => set({ mode: "blink" }),
    };
    if (slider || life.open) {
      keys.Home = () => go(0);
      keys.End = () => go(last);
    }
    if (life.open) {
      keys.PageUp = () => nextFilter(-1);
      keys.PageDown = () => nextFilter(1);
    }
    const act = keys[event.key];
    if (!act || (scrolls && event.key.startsWith("Arrow"))) return;
    event.preventDefault();
    act();
  });
  addEventListener("hashchange", () => {
    if (location.hash === told) return;
    told = location.hash;
    const open = state.life;
    recall();
    if (open && !location.hash.includes("life=")) life.close();
    set({});
    fillSheet();
  });

  recall();
  setEdge(50);
  set({});
  fillSheet();
})();
