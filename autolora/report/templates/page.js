// Fills in images, moves the sliders and shows checkpoints. Everything that it shows is in the page already.
(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const images = new Map(Object.entries(data.images));
  const find = (selector, root = document) => [...root.querySelectorAll(selector)];

  for (const image of find("img[data-picture][src]")) images.set(image.dataset.picture, image.src);
  for (const image of find("img[data-picture]:not([src])")) image.src = images.get(image.dataset.picture);
  document.documentElement.classList.add("scripted");

  const gallery = document.getElementById("gallery"), pareto = document.getElementById("pareto");
  if (gallery && data.gallery) showGallery(gallery, data.gallery);
  if (pareto) showCheckpoints(pareto, data.checkpoints, data.first);
  for (const button of find("button[data-copy]")) {
    button.addEventListener("click", () => copy(button));
  }

  function showGallery(root, { columns, steps, weights, stepWeight }) {
    const compare = root.querySelector("#compare"), step = root.querySelector("#step"), weight = root.querySelector("#weight");
    const last = columns.length - 1;
    let mode = "chosen";

    // The images of a column: its last checkpoint up to the slider's, or its own checkpoint at a weight.
    function select(column) {
      const available = Object.keys(column.steps).map(Number).sort((a, b) => a - b);
      if (available.length === 1 && available[0] === 0) return { keys: column.steps[0], place: "" };
      if (mode === "step") {
        const at = available.filter((checkpoint) => checkpoint <= steps[step.value]).pop();
        if (at === undefined) return { keys: null, place: `first checkpoint: ${available[0]} images` };
        return { keys: column.steps[at], place: `${at} images, weight ${stepWeight}` };
      }
      const value = String(mode === "weight" ? weights[weight.value] : column.weight);
      if (column.weights[value]) return { keys: column.weights[value], place: `${column.step} images, weight ${value}` };
      return { keys: column.steps[column.step] || null, place: `${column.step} images, weight ${stepWeight}` };
    }

    function draw() {
      const places = [0, compare ? Number(compare.value) : 1, last];
      find("[data-column]", root).forEach((cell) => {
        const column = columns[places[Number(cell.dataset.column)]];
        const { keys, place } = select(column);
        const image = cell.querySelector("img"), key = keys && keys[Number(cell.dataset.sample)];
        image.style.visibility = key ? "visible" : "hidden";
        if (key) image.src = images.get(key);
        image.alt = `${column.name}${place ? `, ${place}` : ""}: ${cell.dataset.prompt}`;
        cell.querySelector(".model").textContent = column.name;
        cell.querySelector(".at").textContent = place;
      });
      root.querySelector("#selection").textContent = {
        chosen: "each LoRA at its best checkpoint and at its own weight",
        step: `after ${steps[step.value]} images shown, at weight ${stepWeight}`,
        weight: `at weight ${weights[weight.value]}`,
      }[mode];
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

  // Shows the checkpoint that the slider selects, or that the pointer touches in the figure (its second trace).
  function showCheckpoints(figure, checkpoints, first) {
    const slider = document.getElementById("checkpoint"), panel = document.getElementById("selected");
    slider.max = checkpoints.length - 1;

    function show(index) {
      const { name, verdict, terms, images: keys } = checkpoints[index];
      slider.value = index;
      slider.setAttribute("aria-valuetext", name);
      panel.querySelector("h3").textContent = name;
      panel.querySelector(".verdict-of").textContent = verdict;
      panel.querySelector("dl").replaceChildren(...Object.entries(terms).flatMap(([term, value]) => {
        const dt = document.createElement("dt"), dd = document.createElement("dd");
        dt.textContent = term;
        dd.textContent = value;
        return [dt, dd];
      }));
      panel.querySelector(".thumbnails").replaceChildren(...keys.map((key, place) => {
        const image = document.createElement("img");
        image.src = images.get(key);
        image.alt = `image ${place + 1} of ${name}`;
        return image;
      }));
    }
    slider.addEventListener("input", () => show(Number(slider.value)));
    figure.addEventListener("drawn", () => figure.on("plotly_hover", ({ points }) =>
      points.filter((point) => point.curveNumber === 1).forEach((point) => show(point.pointNumber))));
    show(first);
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
