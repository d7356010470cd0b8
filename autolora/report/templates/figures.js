// Draws each figure with Plotly when it comes near the window. Plotly itself is unpacked for the first of them.
(() => {
  "use strict";
  const NEAR = "500px"; // how far below or above the window a figure is drawn already
  const figures = new Map([...document.querySelectorAll(".plot")].map((plot) =>
    [plot, plot.querySelector("script").textContent]));
  const theme = document.getElementById("figure-theme").textContent;
  const waiting = [];
  let library = null, drawing = false;
  if (!("DecompressionStream" in window && "IntersectionObserver" in window)) return; // the notes stay
  document.documentElement.classList.add("draws");

  const observer = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      observer.unobserve(target);
      waiting.push(target);
    }
    drawWaiting();
  }, { rootMargin: NEAR });
  for (const plot of figures.keys()) observer.observe(plot);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const plot of figures.keys()) if (plot.hasAttribute("data-drawn")) draw(plot);
  });
  addEventListener("beforeprint", () => {
    for (const plot of figures.keys()) if (window.Plotly && plot.offsetParent) draw(plot);
  });

  async function drawWaiting() {
    if (drawing || !waiting.length) return;
    drawing = true;
    library ??= unpack();
    await library;
    while (waiting.length) {
      await draw(waiting.shift());
      await new Promise((resolve) => setTimeout(resolve)); // the page can scroll between two figures
    }
    drawing = false;
  }

  async function draw(plot) {
    const first = !plot.hasAttribute("data-drawn");
    const { data, layout } = JSON.parse(figures.get(plot), withColours);
    layout.template = JSON.parse(theme, withColours);
    layout.template.layout.font.family = getComputedStyle(document.body).fontFamily;
    if (first) plot.replaceChildren();
    plot.setAttribute("data-drawn", "");
    await Plotly.react(plot, data, layout, { displayModeBar: false, responsive: true });
    if (first) plot.dispatchEvent(new CustomEvent("drawn"));
  }

  // Figures name colours as variables of the style sheet, which Plotly cannot read.
  function withColours(key, value) {
    if (typeof value !== "string" || !value.startsWith("var(--")) return value;
    return getComputedStyle(document.documentElement).getPropertyValue(value.slice(4, -1)).trim();
  }

  async function unpack() {
    const packed = atob(document.getElementById("plotly").textContent.trim());
    const bytes = new Uint8Array(packed.length);
    for (let place = 0; place < packed.length; place++) bytes[place] = packed.charCodeAt(place);
    const text = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
    const script = document.createElement("script");
    script.textContent = text;
    document.head.append(script);
  }
})();
