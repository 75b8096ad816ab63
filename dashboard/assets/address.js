/* The address follows the settings of a page, so that a reload or a shared link shows the same; the history is left alone. */
(() => {
  const dash = (window.dash_clientside = window.dash_clientside || {});
  /* To another page, as Dash's links go. Its component for the address does not know of what is put into the address
     without it, and led to the address that it knew: the table without its search. */
  window.loopscope_go = (href) => {
    if (new URL(href, window.location.href).href === window.location.href) return; /* one click may be told twice */
    window.history.pushState({}, "", href);
    window.dispatchEvent(new CustomEvent("_dashprivate_pushstate"));
    window.scrollTo(0, 0);
  };
  Object.assign((dash.loopscope = dash.loopscope || {}), {
    /* The answer that says it may come when the reader has gone on to another page, whose address is its own. */
    address(query) {
      const page = `/${dash.callback_context.inputs_list[0].id.replace("-query", "")}`;
      if (typeof query === "string" && window.location.pathname === page && query !== window.location.search) {
        window.history.replaceState(window.history.state, "", window.location.pathname + query);
      }
      return dash.no_update;
    },
    /* What plotly takes for a click on a mark, beside what is told by places below. */
    follow_mark(click) {
      const href = click && click.points && click.points[0] && click.points[0].customdata;
      if (typeof href === "string" && href.startsWith("/run/")) window.loopscope_go(href);
      return dash.no_update;
    },
    /* The runs in the box that was drawn on the map, by their addresses; none is all of them. */
    brushed(selected, before) {
      const found = ((selected && selected.points) || []).map((point) => point.customdata).filter((href) => typeof href === "string");
      return JSON.stringify(found) === JSON.stringify(before) ? dash.no_update : found;
    },
  });

  /* A click or a tap on a mark of the map opens its run. Plotly's own click is lost where it falls into a redraw, as when
     a run has just been read; here only places count. Only addresses of this dashboard's runs are followed. */
  const NEAR_PX = 14, STILL_PX = 5;
  let pressed = null;
  const map_at = (event) => {
    const graph = event.target.closest && event.target.closest("#map") && document.querySelector("#map .js-plotly-plot");
    return graph && graph._fullLayout ? graph : null;
  };
  const mark_at = (graph, event) => {
    const { xaxis, yaxis } = graph._fullLayout, box = graph.getBoundingClientRect();
    const left = event.clientX - box.left - xaxis._offset, top = event.clientY - box.top - yaxis._offset;
    let best = null, nearest = NEAR_PX;
    if (left < -NEAR_PX || top < -NEAR_PX || left > xaxis._length + NEAR_PX || top > yaxis._length + NEAR_PX) return null;
    graph.data.forEach((trace) => {
      if (trace.visible === "legendonly" || !trace.customdata) return;
      const x = (trace.x && trace.x._inputArray) || trace.x, y = (trace.y && trace.y._inputArray) || trace.y;
      trace.customdata.forEach((href, i) => {
        const away = Math.hypot(xaxis.d2p(x[i]) - left, yaxis.d2p(y[i]) - top);
        if (away < nearest) [nearest, best] = [away, href];
      });
    });
    return best;
  };
  document.addEventListener("pointerdown", (event) => { pressed = map_at(event) ? { x: event.clientX, y: event.clientY } : null; }, true);
  document.addEventListener("pointerup", (event) => {
    const graph = pressed && document.querySelector("#map .js-plotly-plot");
    const still = graph && Math.hypot(event.clientX - pressed.x, event.clientY - pressed.y) <= STILL_PX;
    pressed = null;
    const href = still && !event.button && mark_at(graph, event);
    if (typeof href === "string" && href.startsWith("/run/")) window.loopscope_go(href);
  }, true);
  document.addEventListener("click", (event) => {
    if (event.target.id === "map-all") {
      const graph = document.querySelector("#map .js-plotly-plot");
      if (graph) window.Plotly.relayout(graph, { selections: [] });
      dash.set_props("map-brushed", { data: [] });
    }
  });
})();
