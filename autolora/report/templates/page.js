// Fills in pictures, moves the sliders and draws the Pareto plot. Everything it shows is in the page already.
(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const pictures = new Map(Object.entries(data.pictures));
  const find = (selector, root = document) => [...root.querySelectorAll(selector)];

  for (const image of find("img[data-picture][src]")) pictures.set(image.dataset.picture, image.src);
  for (const image of find("img[data-picture]:not([src])")) image.src = pictures.get(image.dataset.picture);
  document.documentElement.classList.add("scripted");

  const gallery = document.getElementById("gallery");
  if (gallery && data.gallery) showGallery(gallery, data.gallery);
  if (data.pareto) showPareto(document.getElementById("pareto"), data.pareto, data.checkpoints);
  for (const button of find("button[data-copy]")) {
    button.addEventListener("click", () => copy(button));
  }

  function showGallery(root, { columns, steps, weights, stepWeight }) {
    const compare = root.querySelector("#compare"), step = root.querySelector("#step"), weight = root.querySelector("#weight");
    const last = columns.length - 1;
    let mode = "chosen";

    // What a column shows: its last checkpoint up to the step asked for, or its own step at a weight.
    function shown(column) {
      const known = Object.keys(column.steps).map(Number).sort((a, b) => a - b);
      if (known.length === 1 && known[0] === 0) return { images: column.steps[0], words: "" };
      if (mode === "step") {
        const asked = steps[step.value];
        const at = known.filter((own) => own <= asked).pop();
        if (at === undefined) return { images: null, words: `first shown at step ${known[0]}` };
        return { images: column.steps[at], words: `step ${at}, weight ${stepWeight}` };
      }
      const value = String(mode === "weight" ? weights[weight.value] : column.weight);
      if (column.weights[value]) return { images: column.weights[value], words: `step ${column.step}, weight ${value}` };
      return { images: column.steps[column.step] || null, words: `step ${column.step}, weight ${stepWeight}` };
    }

    function draw() {
      const places = [0, compare ? Number(compare.value) : 1, last];
      find("[data-column]", root).forEach((cell) => {
        const column = columns[places[Number(cell.dataset.column)]];
        const { images, words } = shown(column);
        const image = cell.querySelector("img"), key = images && images[Number(cell.dataset.sample)];
        image.style.visibility = key ? "visible" : "hidden";
        if (key) image.src = pictures.get(key);
        image.alt = `${column.name}${words ? `, ${words}` : ""}: ${cell.dataset.prompt}`;
        cell.querySelector(".model").textContent = column.name;
        cell.querySelector(".at").textContent = words;
      });
      const said = {
        chosen: "each at the checkpoint and weight that counts",
        step: `after ${steps[step.value]} images shown, at weight ${stepWeight}`,
        weight: `at weight ${weights[weight.value]}`,
      }[mode];
      root.querySelector("#shown").textContent = said;
      step.setAttribute("aria-valuetext", `${steps[step.value]} images shown`);
      weight.setAttribute("aria-valuetext", `weight ${weights[weight.value]}`);
      for (const slider of [step, weight]) slider.closest("label").classList.toggle("active", slider.id === mode);
    }

    step.max = Math.max(steps.length - 1, 0);
    weight.max = Math.max(weights.length - 1, 0);
    step.value = Math.max(steps.indexOf(columns[last].step), 0);
    weight.value = Math.max(weights.indexOf(columns[last].weight), 0);
    step.disabled = steps.length < 2;
    weight.disabled = weights.length < 2;
    for (const slider of [step, weight]) slider.addEventListener("input", () => { mode = slider.id; draw(); });
    if (compare) compare.addEventListener("change", draw);
    draw();
  }

  async function showPareto(root, figure, checkpoints) {
    const slider = document.getElementById("checkpoint"), panel = document.getElementById("hovered");
    slider.max = checkpoints.length - 1;

    function show(index) {
      const one = checkpoints[index];
      slider.value = index;
      slider.setAttribute("aria-valuetext", one.words);
      panel.querySelector("h3").textContent = one.words;
      panel.querySelector(".verdict-of").textContent = one.verdict;
      panel.querySelector("dl").replaceChildren(...Object.entries(one.terms).flatMap(([name, value]) => {
        const dt = document.createElement("dt"), dd = document.createElement("dd");
        dt.textContent = name;
        dd.textContent = value;
        return [dt, dd];
      }));
      panel.querySelector(".thumbnails").replaceChildren(...one.pictures.map((key, place) => {
        const image = document.createElement("img");
        image.src = pictures.get(key);
        image.alt = `picture ${place + 1} of ${one.words}`;
        return image;
      }));
    }
    slider.addEventListener("input", () => show(Number(slider.value)));
    show(Number(root.dataset.first));

    const Plotly = await library();
    if (!Plotly) return;
    const wide = () => ({ ...figure.layout, ...colours(), height: root.clientWidth < 520 ? 340 : 430 });
    await Plotly.newPlot(root, painted(figure.data), wide(), { displayModeBar: false, responsive: true });
    root.setAttribute("data-drawn", "");
    root.on("plotly_hover", ({ points }) => points.filter((p) => p.curveNumber === 1).forEach((p) => show(p.pointNumber)));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () =>
      Plotly.react(root, painted(figure.data), wide()));
  }

  function painted([front, all, chosen]) {
    const ink = colour("--ink");
    const scale = [[0, colour("--fidelity")], [0.5, colour("--middle")], [1, colour("--bleed")]];
    return [
      { ...front, line: { color: colour("--soft"), width: 1.5, dash: "dot" } },
      { ...all, marker: { ...all.marker, colorscale: scale } },
      { ...chosen, marker: { ...chosen.marker, color: ink }, error_x: { ...chosen.error_x, color: ink },
        error_y: { ...chosen.error_y, color: ink } },
    ];
  }

  function colours() {
    const axis = (own) => ({ ...own, gridcolor: colour("--line"), zerolinecolor: colour("--line"), automargin: true });
    return {
      paper_bgcolor: "transparent", plot_bgcolor: "transparent",
      font: { color: colour("--soft"), family: getComputedStyle(document.body).fontFamily, size: 13 },
      hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--ink") } },
      xaxis: axis(figureAxis("xaxis")), yaxis: axis(figureAxis("yaxis")),
    };
  }

  function figureAxis(name) { return data.pareto.layout[name]; }

  function colour(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }

  // Unpacks Plotly; nothing where the browser cannot (before 2023), as all numbers are in the tables too.
  async function library() {
    if (!("DecompressionStream" in window)) return null;
    const packed = document.getElementById("plotly").textContent.trim();
    const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
    const text = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
    const script = document.createElement("script");
    script.textContent = text;
    document.head.append(script);
    return window.Plotly;
  }

  async function copy(button) {
    const text = document.getElementById(button.dataset.copy).textContent;
    const before = button.textContent;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "copied";
    } catch {
      getSelection().selectAllChildren(document.getElementById(button.dataset.copy));
      button.textContent = "selected";
    }
    setTimeout(() => { button.textContent = before; }, 1500);
  }
})();
