/* What has to happen in the browser: choosing a step, sharing a zoom, drawing table cells. No request is made here. */
(() => {
  /* This file loads before Dash's own code has filled this object in; it is read when a callback runs. */
  const dash = (window.dash_clientside = window.dash_clientside || {});
  const trigger = () => {
    const context = dash.callback_context;
    return context.triggered.length ? context.triggered[0] : null;
  };
  const LOST_MS = 20_000; /* an answer that takes longer is taken for lost, as where the server was started anew */
  let asked_at = 0;

  dash.loopscope = {
    /* A step chosen by a click, the slider, a finding or the "latest" button; null follows the newest step. */
    pick(...given) {
      const [slider, , , newest, selected] = given.slice(-5); /* before them, the clicks on plots */
      const event = trigger();
      if (!event || event.value === null || event.value === undefined) return [dash.no_update, dash.no_update];
      const property = event.prop_id;
      let step = null;
      if (property.endsWith(".clickData")) step = event.value.points[0].x;
      else if (property === "slider.value") step = slider >= newest ? null : slider;
      else if (property.startsWith("{")) step = JSON.parse(property.slice(0, property.lastIndexOf("."))).step;
      const chosen = step === null ? null : Math.round(step);
      const thumb = chosen === null ? newest : chosen;
      return [chosen === selected ? dash.no_update : chosen, thumb === slider ? dash.no_update : thumb];
    },

    /* The address keeps the step, so that a reload or a shared link shows the same; the history is left alone. */
    mirror(selected) {
      const address = new URL(window.location.href);
      if (selected === null || selected === undefined) address.searchParams.delete("step");
      else address.searchParams.set("step", selected);
      if (address.href !== window.location.href) window.history.replaceState(window.history.state, "", address);
    },

    /* Zooming one plot over steps zooms all of them; null is everything. */
    zoom(...given) {
      const view = given[given.length - 1];
      const event = trigger();
      if (!event || !event.value) return dash.no_update;
      if (event.prop_id === "reset-zoom.n_clicks") return view === null ? dash.no_update : null;
      const change = event.value;
      if (change["xaxis.autorange"]) return null;
      const range = change["xaxis.range"] || [change["xaxis.range[0]"], change["xaxis.range[1]"]];
      return range[0] === undefined || range[1] === undefined ? dash.no_update : range.map(Number);
    },

    /* A tick of a clock (see polling.py): none while an answer to the last one is due, unless it must be lost. */
    tick(count, asked, ...answered) {
      const due = answered.some((tick) => tick !== asked);
      if (due && Date.now() - asked_at < LOST_MS) return dash.no_update;
      asked_at = Date.now();
      return count;
    },

    /* The bar: which page is shown, and how many runs are ticked. */
    bar(pathname, ...counted) {
      const ids = dash.callback_context.inputs_list.slice(1).map((input) => input.id);
      requestAnimationFrame(() => {
        for (const link of document.querySelectorAll(".ls-nav-link")) {
          const here = new URL(link.href).pathname === pathname;
          if (here) link.setAttribute("aria-current", "page");
          else link.removeAttribute("aria-current");
        }
        for (const span of document.querySelectorAll("[data-counts]")) {
          const chosen = counted[ids.indexOf(span.dataset.counts)];
          span.textContent = chosen && chosen.length ? ` (${chosen.length})` : "";
        }
      });
      return dash.no_update;
    },

    open_row(rows) {
      return rows && rows.length ? rows[0].href : dash.no_update;
    },

    search(text, options) {
      return { ...options, quickFilterText: text || "" };
    },
  };

  const element = (...parts) => window.React.createElement(...parts);
  const badge = (kind, glyph, text) => element("span", { className: `ls-badge ls-${kind}` }, element("i", null, glyph), text);
  const cells = (window.dashAgGridComponentFunctions = window.dashAgGridComponentFunctions || {});
  const glyphs = { stable: "●", marginal: "◆", unstable: "▲", unknown: "○" };

  cells.LsRun = (props) => element("span", { className: "ls-run", title: props.data.path }, props.value);
  /* A run that cannot be read has its error where the regimes would be. */
  cells.LsRegime = (props) =>
    props.data.fault && props.colDef.field === "lti"
      ? element("span", { className: "ls-fault", title: props.data.fault }, element("i", null, "✕"), props.data.fault)
      : props.value
        ? badge(props.value, glyphs[props.value], props.value)
        : badge("unreadable", "✕", "unreadable");
  cells.LsState = (props) => badge(props.value, props.value === "unreadable" ? "✕" : "●", props.value);
  const functions = (window.dashAgGridFunctions = window.dashAgGridFunctions || {});
  const worst = ["stable", "marginal", "unstable"];
  functions.lsRegimeOrder = (a, b) => worst.indexOf(a) - worst.indexOf(b);
  functions.lsCount = (value) => (value === null || value === undefined ? "–" : value.toLocaleString("en"));
  functions.lsNumber = (value) => {
    if (value === null || value === undefined) return "–";
    if (typeof value === "string") return value;
    const size = Math.abs(value);
    return size !== 0 && (size >= 1e5 || size < 1e-3) ? value.toExponential(2) : value.toPrecision(4);
  };
  /* A phone shows what decides; the rest is one tap away. */
  const fit = (api) => {
    const width = document.getElementById("runs").clientWidth;
    api.setColumnsVisible(["lti", "loop", "trajectory", "loss", "radius", "state_norm"], width >= 1000);
    api.setColumnsVisible(["steps", "breach", "state"], width >= 600);
    api.setColumnsVisible(["verdict"], width < 1000);
  };
  dash.loopscope.fit_columns = (id) => {
    window.dash_ag_grid.getApiAsync(id).then((api) => {
      fit(api);
      api.addEventListener("gridSizeChanged", () => fit(api));
    });
    return "ls-table ls-fitted";
  };
})();
