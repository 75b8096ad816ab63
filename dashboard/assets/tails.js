/* A run grows: what its plots have is told to the server, and what comes back is added to them, drawn once. */
(() => {
  const dash = (window.dash_clientside = window.dash_clientside || {});
  const MOST_POINTS = 6000, MOST_COLUMNS = 1200; /* of a line, of a map; beyond them the server thins anew */
  const plain = (x) => Array.from((x && x._inputArray) || x || []);
  const rows = (z) => Array.from((z && z._inputArray) || z || [], plain);
  const graph_of = (id) => {
    const panel = document.getElementById(`panel-${id.name}`);
    return panel && panel.querySelector(".js-plotly-plot");
  };
  const key = (trace) => String(trace.name ?? "");
  /* A run that was resumed from an earlier step is of another generation: nothing is added to what is of the one before. */
  const made_in = (graph) => graph.layout && graph.layout.meta && graph.layout.meta.generation;

  /* The last step of a line; the last column of a map stands for steps up to the newest one there was. */
  const end = (graph, trace) => {
    const x = plain(trace.x);
    let last = x.length - 1;
    while (last >= 0 && (x[last] === null || Number.isNaN(x[last]))) last -= 1;
    if (last < 0) return -1;
    return trace.type === "heatmap" ? Math.max(Number(x[last]), (graph.layout.meta && graph.layout.meta.until) || -1) : Number(x[last]);
  };
  let told = {}; /* how far the plots went when the server was asked for what comes after */

  /* Whether a new value is within an axis whose range is fixed. */
  const fits = (axis, values) => {
    if (!axis || axis.autorange || axis.type === "category" || !axis.range) return true;
    const [low, high] = axis.range, place = axis.type === "log" ? Math.log10 : Number;
    return values.every((v) => v === null || (axis.type === "log" && v <= 0) || (place(v) >= low && place(v) <= high));
  };

  /* Add what is new to a plot; false where it has to be drawn anew. */
  const add = (graph, news, asked) => {
    if (!graph || !graph.data || !graph._fullLayout || made_in(graph) !== news.generation) return false;
    if (news.version !== undefined) {
      if (!graph.layout.meta || graph.layout.meta.version !== news.version) return false;
    }
    const grown = [];
    for (const part of news.traces || []) {
      if (!part.y && !part.z) return false; /* a line that this page did not have when it was asked */
      const at = graph.data.findIndex((trace) => key(trace) === String(part.name ?? "") && (trace.type === "heatmap") === (part.z !== undefined));
      if (at < 0) return false;
      const trace = graph.data[at], x = plain(trace.x), has = end(graph, trace);
      /* The plot may have been drawn whole since it was asked for: with some of this in it, or of an earlier moment. */
      if (has < ((asked || {})[key(trace)] ?? -1)) return false;
      const from = part.x.findIndex((step) => step > has);
      if (from < 0) continue;
      const steps = part.x.slice(from);
      if (part.z) {
        const z = rows(trace.z);
        if (z.length !== part.z.length || x.length + steps.length > MOST_COLUMNS) return false;
        grown.push([trace, x.concat(steps), { z: z.map((row, i) => row.concat(part.z[i].slice(from))) }]);
      } else {
        const values = part.y.slice(from);
        if (x.length + steps.length > MOST_POINTS) return false;
        if (!fits(graph._fullLayout[trace.yaxis === "y2" ? "yaxis2" : "yaxis"], values)) return false;
        grown.push([trace, x.concat(steps), { y: plain(trace.y).concat(values) }]);
      }
    }
    const maps = grown.filter((one) => one[0].type === "heatmap").length;
    if (maps && maps < graph.data.filter((trace) => trace.type === "heatmap").length) return false; /* columns must stay beside each other */
    for (const [trace, x, values] of grown) Object.assign(trace, { x }, values);
    if (news.summary) graph.layout.meta.summary = news.summary;
    if (graph.layout.xaxis) Object.assign(graph.layout.xaxis, { range: news.range, autorange: false });
    window.Plotly.react(graph, graph.data, graph.layout, graph._context);
    return true;
  };

  Object.assign((dash.loopscope = dash.loopscope || {}), {
    /* By panel: the last step of every line, and whether some of it is of an earlier generation of the run. */
    have(version, bounds, view, ids) {
      if (!version) return dash.no_update;
      const found = {};
      let anew = false;
      for (const id of ids) {
        const graph = graph_of(id), lines = {};
        anew = anew || Boolean(graph && made_in(graph) !== bounds[2]);
        for (const trace of (graph && graph.data) || []) lines[key(trace)] = end(graph, trace);
        found[id.name] = lines;
      }
      told = found;
      const ends = Object.values(found).flatMap((lines) => Object.values(lines));
      /* A reader who looks at an earlier stretch sees none of what is new. */
      const past = Boolean(view) && ends.length > 0 && view[1] < Math.max(...ends);
      return { anew, past, zoomed: Boolean(view), panels: found };
    },
    /* Returns the panels that the server has to draw whole, and whether this answers the clock. */
    grow(tails, asked, ids, batch) {
      if (!tails) return [dash.no_update, dash.no_update];
      const whole = ids.map((id) => id.name).filter((name) => tails.whole || tails.batch !== batch || (tails.panels[name] && !add(graph_of({ name }), tails.panels[name], told[name])));
      return whole.length ? [{ panels: whole, asked }, dash.no_update] : [dash.no_update, asked];
    },
  });
})();
