/* The plots of a run: one cursor over all plots of steps, numbers read at it, pictures and links taken along. */
(() => {
  const graphs = () => [...document.querySelectorAll("#steps .js-plotly-plot")].filter((g) => g._fullLayout && g.layout.meta && g.layout.meta.over_steps);
  const array = (x) => (x && x._inputArray) || x || []; /* a long column arrives in binary */
  const nice = (v) => (v === 0 ? "0" : Math.abs(v) >= 1e5 || Math.abs(v) < 1e-3 ? v.toExponential(2) : v.toPrecision(4));

  /* The number of a line at the last drawn step up to a step. */
  const value_at = (trace, step) => {
    const x = array(trace.x), y = array(trace.y);
    let low = 0, high = x.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (x[middle] <= step) low = middle + 1;
      else high = middle;
    }
    return low ? y[low - 1] : undefined;
  };

  const read_out = (step) => {
    for (const graph of graphs()) {
      const panel = graph.closest(".ls-panel");
      const place = panel && panel.querySelector("[data-readout]");
      if (!place) continue;
      const said = step === null ? [] : graph.data.filter((t) => t.type === "scatter" && t.mode !== "markers" && t.name !== "flights").map((t) => {
        const value = value_at(t, step);
        return value === undefined || value === null ? null : `${t.name.replace(/<[^>]*>/g, "")} ${nice(value)}`;
      });
      place.textContent = said.filter(Boolean).join(" · ");
    }
  };

  /* The line under the pointer: one element over the whole column, so that it cannot be out of line. */
  const over = (event) => {
    const column = event.target.closest && event.target.closest("#steps");
    const shown = column && graphs()[0];
    let line = document.getElementById("hover-line");
    if (!shown) {
      if (line) line.hidden = true;
      return;
    }
    const box = shown.getBoundingClientRect(), axis = shown._fullLayout.xaxis;
    const x = event.clientX - box.left - axis._offset;
    const inside = x >= 0 && x <= axis._length;
    if (!line) {
      line = document.createElement("div");
      line.id = "hover-line";
      line.append(document.createElement("span"));
    }
    if (line.parentElement !== column) column.append(line);
    line.hidden = !inside;
    if (!inside) return;
    const step = Math.round(axis.p2l(x));
    line.style.left = `${event.clientX - column.getBoundingClientRect().left}px`;
    line.firstChild.textContent = step.toLocaleString("en");
    read_out(step);
  };
  document.addEventListener("mousemove", over, { passive: true });

  /* The chosen step: the first shape of every plot over steps. */
  window.loopscope_cursor = (selected) => {
    const on = selected !== null && selected !== undefined;
    for (const graph of graphs()) {
      const [line] = graph.layout.shapes || [];
      if (!line || (line.visible === on && (!on || line.x0 === selected))) continue;
      window.Plotly.relayout(graph, { "shapes[0].visible": on, "shapes[0].x0": on ? selected : 0, "shapes[0].x1": on ? selected : 0 });
    }
    read_out(on ? selected : null);
  };

  /* A plot that was on its way when a step was chosen comes with the cursor of before; the address has the step. */
  const stand = () => {
    const step = new URL(window.location.href).searchParams.get("step");
    if (window.location.pathname.startsWith("/run/") && (step === null || /^\d+$/.test(step))) window.loopscope_cursor(step === null ? null : Number(step));
  };
  setInterval(stand, 1000);

  /* A picture with a title and a ground, since it leaves the page; a link to the panel; a CSV of what is in view. */
  const take = (button) => {
    const panel = document.getElementById(`panel-${button.dataset.panel}`), graph = panel.querySelector(".js-plotly-plot");
    if (button.dataset.take === "link") {
      const address = new URL(window.location.href);
      address.hash = panel.id;
      navigator.clipboard.writeText(address.href).then(() => {
        button.textContent = "copied";
        setTimeout(() => (button.textContent = "copy link"), 1500);
      });
      return;
    }
    const style = getComputedStyle(document.body), title = panel.querySelector("h2").textContent;
    const layout = { ...graph.layout, paper_bgcolor: style.backgroundColor, font: { ...graph.layout.font, color: style.color } };
    const run = document.querySelector("h1").textContent;
    layout.title = { text: `${title} · ${run}`.replace(/&/g, "&amp;").replace(/</g, "&lt;"), font: { size: 15 } };
    layout.margin = { ...graph.layout.margin, t: graph.layout.margin.t + 28 };
    const size = { width: Math.round(graph.clientWidth), height: Math.round(graph.clientHeight) + 28 };
    window.Plotly.downloadImage({ data: graph.data, layout: { ...layout, ...size } },
      { format: button.dataset.take, ...size, scale: button.dataset.take === "png" ? 2 : 1, filename: `${run}-${button.dataset.panel}` });
  };

  /* Play: every step is shown before the next one is asked for, since Dash drops an answer that is overtaken. */
  const FRAMES = 60, FRAME_MS = 300, LOST_MS = 5000;
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));
  const next_drawn = () => {
    const graph = document.querySelector(".ls-at .js-plotly-plot");
    return graph ? Promise.race([new Promise((done) => graph.once("plotly_afterplot", done)), wait(LOST_MS)]) : Promise.resolve();
  };
  let playing = null;
  const play = async () => {
    const here = window.location.pathname, mine = playing && playing.here === here ? null : { here };
    playing = mine;
    const say = () => {
      const now = document.getElementById("play");
      if (now) now.textContent = playing ? "■ stop" : "▶ play through training";
    };
    say();
    if (!mine) return;
    const [first, last] = graphs().length ? graphs()[0]._fullLayout.xaxis.range : [0, 1];
    for (let frame = 0; frame <= FRAMES && playing === mine && window.location.pathname === here && document.getElementById("play"); frame += 1) {
      const step = Math.max(0, Math.round(first + ((last - first) * frame) / FRAMES));
      const drawn = next_drawn();
      window.dash_clientside.set_props("selected", { data: step });
      window.dash_clientside.set_props("step-input", { value: step });
      await Promise.all([drawn, wait(FRAME_MS)]);
    }
    if (playing === mine) playing = null;
    say();
  };

  document.addEventListener("click", (event) => {
    const button = event.target.closest && event.target.closest("[data-take], #play");
    if (button) button.id === "play" ? play() : take(button);
    /* Not for the click with which plotly saves a picture. */
    if (event.isTrusted) for (const about of document.querySelectorAll("details.ls-about[open]")) if (!about.contains(event.target)) about.open = false;
    const csv = event.target.closest && event.target.closest('a[href^="/csv/"]');
    if (csv && graphs().length) {
      const address = new URL(csv.href), [from, to] = graphs()[0]._fullLayout.xaxis.range;
      const step = new URL(window.location.href).searchParams.get("step");
      address.searchParams.set("from", from);
      address.searchParams.set("to", to);
      if (step !== null) address.searchParams.set("step", step);
      csv.href = address.href;
    }
  }, true);

  /* Arrow keys move the step and the tabs, unless somebody is typing. */
  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const at = document.activeElement;
    if (event.key === "Escape") for (const about of document.querySelectorAll("details.ls-about[open]")) about.open = false;
    if (at && /^(INPUT|TEXTAREA|SELECT)$/.test(at.tagName)) return;
    const way = event.key === "ArrowLeft" ? -1 : event.key === "ArrowRight" ? 1 : 0;
    if (!way) return;
    if (at && at.getAttribute("role") === "tab") {
      const tabs = [...document.querySelectorAll("[role=tab]")];
      tabs[(tabs.indexOf(at) + way + tabs.length) % tabs.length].focus();
    } else {
      const button = document.getElementById(way < 0 ? "step-back" : "step-on");
      if (button && !(at && at.closest && at.closest(".ls-radio, [role=radiogroup], .ag-root"))) button.click();
    }
  });

  /* A finger on a plot scrolls the page: plotly would take it for the drag of a mouse. A tap still is a click. */
  document.addEventListener("touchstart", (event) => {
    if (event.target.closest && event.target.closest(".js-plotly-plot")) event.stopPropagation();
  }, { capture: true, passive: true });

  /* Every drawn plot says in one line what it shows; a table that is wider than its place can be scrolled by keyboard. */
  const describe = () => {
    for (const place of document.querySelectorAll(".ls-scroll")) {
      if (place.scrollWidth > place.clientWidth) place.tabIndex = 0;
      else place.removeAttribute("tabindex");
    }
    for (const graph of document.querySelectorAll(".js-plotly-plot")) {
      /* A plot with nothing to draw takes up one line, which says what would fill it. */
      const panel = graph.closest(".ls-panel"), nothing = panel && panel.querySelector(".ls-nothing");
      if (nothing && graph.layout) {
        const none = Boolean(graph.layout.meta && graph.layout.meta.empty), words = none ? graph.layout.annotations.map((note) => note.text).join(" ").replace(/<br>/g, " ") : "";
        panel.classList.toggle("ls-empty", none);
        if (nothing.textContent !== words) nothing.textContent = words;
      }
      const said = graph.layout && graph.layout.meta && graph.layout.meta.summary;
      if (said && graph.getAttribute("aria-label") !== said) {
        graph.setAttribute("role", "img");
        graph.setAttribute("aria-label", said.replace(/<[^>]*>/g, ""));
      }
    }
  };
  /* What Dash's own controls say of themselves is not what they are: choices are no list box, and a field that only
     holds a value cannot be reached. */
  const mend = () => {
    for (const option of document.querySelectorAll("label.dash-options-list-option[role]")) {
      option.removeAttribute("role");
      option.removeAttribute("aria-selected");
    }
    for (const list of document.querySelectorAll(".dash-options-list[role=listbox]")) list.setAttribute("role", "group");
    for (const control of document.querySelectorAll(".ls-control")) {
      const name = control.querySelector(".ls-control-name");
      if (name) for (const part of control.querySelectorAll("[role=slider], input[type=number]")) part.setAttribute("aria-label", name.textContent);
    }
    for (const preset of document.querySelectorAll(".ls-preset")) preset.setAttribute("aria-pressed", preset.classList.contains("ls-chosen"));
    for (const field of document.querySelectorAll("input[aria-hidden=true]:not([tabindex='-1'])")) field.tabIndex = -1;
    /* The field takes the focus for the choice and is hidden from screen readers: the choice itself has to take it. */
    for (const choice of document.querySelectorAll("button.dash-dropdown[tabindex='-1']")) choice.tabIndex = 0;
  };
  setInterval(describe, 1000);
  /* A picture that arrives may be wider than its place. */
  document.addEventListener("load", (event) => {
    if (event.target.tagName === "IMG") describe();
  }, true);
  setInterval(mend, 300);
})();
