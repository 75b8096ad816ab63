/* What has to happen in the browser: choosing a step, sharing a zoom, drawing table cells. No request is made here. */
(() => {
  /* This file loads before Dash's own code has filled this object in; it is read when a callback runs. */
  const dash = (window.dash_clientside = window.dash_clientside || {});
  const trigger = () => {
    const context = dash.callback_context;
    return context.triggered.length ? context.triggered[0] : null;
  };
  const show_tab = (name) => {
    for (const button of document.querySelectorAll("[role=tab]")) {
      const mine = JSON.parse(button.id).name === name;
      button.setAttribute("aria-selected", mine ? "true" : "false");
    }
  };
  const LOST_MS = 20_000; /* an answer that takes longer is taken for lost, as where the server was started anew */
  let asked_at = 0;
  window.addEventListener("loopscope-back", () => (asked_at = 0)); /* what a server that ended owes will not come */

  Object.assign((dash.loopscope = dash.loopscope || {}), {
    /* A step chosen by a click, the field, its arrows, a finding or "newest"; null follows the newest step. */
    pick(clicks, typed, back, on, latest, gotos, [first, newest], selected) {
      const event = trigger();
      if (!event || event.value === null || event.value === undefined) {
        return [dash.no_update, selected ?? ""];
      }
      const property = event.prop_id;
      let step = selected ?? null;
      if (property.endsWith(".clickData")) step = event.value.points[0].x;
      else if (property.startsWith("step-input")) step = typed === "" ? null : typed;
      else if (property.startsWith("step-back")) step = Math.max(first, (selected ?? newest) - 1);
      else if (property.startsWith("step-on")) step = (selected ?? newest) >= newest ? null : selected + 1;
      else if (property.startsWith("latest")) step = null;
      else if (property.startsWith("{")) step = JSON.parse(property.slice(0, property.lastIndexOf("."))).step;
      const chosen = step === null || !Number.isFinite(Number(step)) ? null : Math.min(newest, Math.max(first, Math.round(step)));
      return [chosen === (selected ?? null) ? dash.no_update : chosen, chosen === typed ? dash.no_update : chosen ?? ""];
    },

    /* A tab: the address gets a new entry in the history, so that "back" leads to the tab before. */
    tab(clicks, shown) {
      const event = trigger();
      if (!event || !event.value) return dash.no_update;
      const name = JSON.parse(event.prop_id.slice(0, event.prop_id.lastIndexOf("."))).name;
      if (name === shown || !window.location.pathname.startsWith("/run/")) return dash.no_update;
      show_tab(name);
      const address = new URL(window.location.href);
      address.searchParams.set("tab", name);
      address.hash = "";
      window.history.pushState({}, "", address);
      return name;
    },

    /* A tab comes with the step, the loops and the range that were chosen when it was asked for. */
    made(made, tab, run, ...chosen) {
      const said = (values) => JSON.stringify(values.map((value) => value ?? null));
      if (made && said(made.slice(1)) !== said(chosen)) dash.set_props("tab", { data: tab });
      return dash.no_update;
    },

    choose(value, kept) {
      return (value ?? "") === kept ? dash.no_update : value ?? "";
    },

    /* The address keeps what is shown, so that a reload or a shared link shows the same; the history is left alone. */
    mirror(selected, tab, batch, against, run) {
      if (decodeURIComponent(window.location.pathname) !== `/run/${run}`) return dash.no_update; /* the reader has left */
      const address = new URL(window.location.href);
      const kept = { step: selected, tab: address.searchParams.has("tab") || tab !== "when" ? tab : null,
                     batch: batch === "fixed" ? null : batch, against };
      for (const [name, value] of Object.entries(kept)) {
        if (value === null || value === undefined || value === "") address.searchParams.delete(name);
        else address.searchParams.set(name, value);
      }
      if (address.href !== window.location.href) window.history.replaceState(window.history.state, "", address);
      window.loopscope_cursor(selected);
      return dash.no_update;
    },

    /* Zooming one plot over steps zooms all of them; null is everything. */
    zoom(changes, reset, view) {
      const event = trigger();
      if (!event || !event.value) return dash.no_update;
      if (event.prop_id === "reset-zoom.n_clicks") return view ? null : dash.no_update;
      const change = event.value;
      if (change["xaxis.autorange"]) return view ? null : dash.no_update;
      const range = change["xaxis.range"] || [change["xaxis.range[0]"], change["xaxis.range[1]"]];
      if (range[0] === undefined || range[1] === undefined) return dash.no_update;
      const next = range.map(Number);
      return view && view[0] === next[0] && view[1] === next[1] ? dash.no_update : next;
    },

    /* A tick of a clock (see polling.py): none while an answer to the last one is due, unless it must be lost. */
    tick(count, asked, ...answered) {
      const due = answered.some((tick) => tick !== asked);
      if (due && Date.now() - asked_at < LOST_MS) return dash.no_update;
      asked_at = Date.now();
      return count;
    },

    /* Of every answer the latest number, first what has come, then what is known. */
    latest(...numbers) {
      const half = numbers.length / 2;
      return numbers.slice(0, half).map((number, i) => Math.max(number || 0, numbers[half + i] || 0));
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
  });
})();
