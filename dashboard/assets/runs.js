/* The table of runs: what its cells look like, and what the browser decides: search, filters, columns, ticks. All of it
   is in the address, so that going back and a shared link show the same. */
(() => {
  const element = (...parts) => window.React.createElement(...parts);
  const badge = (kind, glyph, text, title) =>
    element("span", { className: `ls-badge ls-${kind}`, "data-tip": title }, element("i", null, glyph), text);
  const cells = (window.dashAgGridComponentFunctions = window.dashAgGridComponentFunctions || {});
  const functions = (window.dashAgGridFunctions = window.dashAgGridFunctions || {});
  const glyphs = { stable: "●", marginal: "◆", unstable: "▲", unknown: "○" };
  const names = { lti: "injection", loop: "full loop", trajectory: "fixed batch" };

  /* A click needs no new page; other buttons open a tab as everywhere. */
  const follow = (href) => (event) => {
    if (event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    window.loopscope_go(href);
  };
  const cut = (name, limit) => (name.length <= limit ? name : `${name.slice(0, Math.ceil((limit - 1) / 2))}…${name.slice(-Math.floor((limit - 1) / 2))}`);

  /* A name that does not fit loses its middle, in the style sheet: the head gives way, the tail stays. */
  const TAIL = 9;
  cells.LsRun = (props) => {
    const at = props.value.length > 2 * TAIL ? props.value.length - TAIL : props.value.length;
    const name = element("a", { className: "ls-run", href: props.data.href, title: `${props.value} · ${props.data.path}`, onClick: follow(props.data.href) },
      element("span", null, props.value.slice(0, at)), element("span", null, props.value.slice(at)));
    const { lr, loss, variable, state } = props.data, more = []; /* a phone has no columns for these */
    if (variable) more.push(element("small", { key: "fails", className: "ls-failing" }, variable));
    if (state !== "reading") more.push(element("small", { key: "more" }, `lr ${functions.lsNumber(lr)} · loss ${functions.lsNumber(loss)}`));
    return element("span", { className: "ls-runname" }, name, ...more);
  };
  cells.LsVariable = (props) => {
    const { variable, variable_name, variable_step, variable_rule, href } = props.data;
    if (!variable) return element("span", { className: "ls-dim" }, props.data.verdict ? "–" : "");
    const [what, since] = variable.split(" since ");
    const more = [since && `since ${since}`, (variable_rule || "").split(" ")[0]].filter(Boolean).join(" · ");
    const query = new URLSearchParams({ tab: "where", batch: `variable:${variable_name}` });
    if (variable_step !== null) query.set("step", variable_step);
    const target = `${href}?${query}`;
    return element("a", { className: "ls-failing", href: target, title: `${variable}, says ${variable_rule || "no rule yet"}: see its own loops`, onClick: follow(target) },
      element("span", null, element("i", null, "▲ "), what), element("small", null, more));
  };
  /* A run that cannot be read has its error where the other cells would be. */
  cells.LsVerdict = (props) => {
    const { fault, name, regimes, agree, sentence, state, href } = props.data;
    if (state === "unreadable") return element("span", { className: "ls-fault", title: fault }, element("i", null, "✕"),
      element("a", { href, onClick: follow(href) }, cut(name, 40)), ` ${fault}`);
    if (!props.value) return element("span", { className: "ls-dim" }, "reading…");
    const parts = [badge(props.value, glyphs[props.value], props.value, fault || sentence)];
    if (agree === false) {
      for (const [key, regime] of Object.entries(regimes)) {
        parts.push(element("i", { key, className: `ls-mini ls-${regime}`, title: `${names[key]}: ${regime}`, "aria-label": `${names[key]}: ${regime}` }, glyphs[regime]));
      }
    }
    return element("span", { className: "ls-verdicts" }, ...parts);
  };
  const gates = { pass: ["stable", "✓"], fail: ["error", "✕"], error: ["unknown", "?"] };
  cells.LsGate = (props) => (gates[props.value] ? badge(...gates[props.value], props.value, `${props.data.gate_sentence} By the ${props.data.rules}.`) : "");
  cells.LsState = (props) => (props.value === "reading" ? "" : badge(props.value, props.value === "unreadable" ? "✕" : "●", props.value));
  cells.LsSpark = (props) => {
    const values = props.value || [], finite = values.filter((v) => v !== null);
    const last = props.data.loss;
    if (!finite.length) return element("span", { className: "ls-dim" }, last === "inf" ? "∞" : "–");
    const low = Math.min(...finite), high = Math.max(...finite), wide = 78, tall = 22;
    const x = (i) => (values.length > 1 ? (i * wide) / (values.length - 1) : 0), y = (v) => tall - 2 - ((tall - 4) * (v - low)) / (high - low || 1);
    let path = "", pen = false;
    values.forEach((v, i) => {
      if (v === null) return (pen = false);
      path += `${pen ? "L" : "M"}${x(i).toFixed(1)} ${y(v).toFixed(1)}`;
      pen = true;
    });
    const lost = values.map((v, i) => (v === null ? element("text", { key: i, x: x(i), y: 9, className: "ls-spark-lost" }, "×") : null));
    return element("span", { className: "ls-spark" },
      element("svg", { width: wide, height: tall, "aria-hidden": true }, element("path", { d: path }), ...lost), functions.lsNumber(last));
  };
  const ago = (seconds) => (seconds < 60 ? "now" : seconds < 3600 ? `${Math.floor(seconds / 60)} min` : seconds < 86400 ? `${Math.floor(seconds / 3600)} h` : `${Math.floor(seconds / 86400)} d`);
  const when = (moment) => (moment ? new Date(1000 * moment).toLocaleString() : "");
  cells.LsAgo = (props) => (props.value ? element("span", { title: when(props.value) }, `${ago(Date.now() / 1000 - props.value)}${ago(Date.now() / 1000 - props.value) === "now" ? "" : " ago"}`) : "–");
  cells.LsAlert = (props) => {
    const { alerted, alert_step, href } = props.data;
    if (!props.value) return element("span", { className: "ls-dim" }, props.data.verdict ? "none" : "");
    const target = `${href}?step=${alert_step}`, [name] = props.value.split(" at step ");
    const since = alerted ? ` · ${ago(Date.now() / 1000 - alerted)}${ago(Date.now() / 1000 - alerted) === "now" ? "" : " ago"}` : "";
    return element("a", { className: "ls-first-alert", href: target, title: `${props.value} · ${when(alerted)}`, onClick: follow(target) },
      element("span", null, name), element("small", null, `step ${functions.lsCount(alert_step)}${since}`));
  };

  /* The error of a broken run takes up the whole row. */
  functions.lsSpan = (params) => (params.data && params.data.state === "unreadable" ? params.api.getAllDisplayedColumns().length - 1 : 1);
  functions.lsRowHeight = (params) => {
    const usual = parseInt(getComputedStyle(document.getElementById("runs")).getPropertyValue("--ls-row"), 10) || 38;
    return usual > 38 && params.data && params.data.variable ? usual + 18 : usual; /* on a phone its name has lines below it */
  };
  const order = ["stable", "unknown", "marginal", "unstable"];
  const outcomes = ["pass", "error", "fail"];
  functions.lsGateOrder = (a, b) => outcomes.indexOf(a) - outcomes.indexOf(b);
  functions.lsRegimeOrder = (a, b) => order.indexOf(a) - order.indexOf(b);
  functions.lsLossOrder = (a, b) => (Number(a.data.loss) || 0) - (Number(b.data.loss) || 0);
  functions.lsCount = (value) => (value === null || value === undefined ? "–" : value.toLocaleString("en"));
  functions.lsSize = (value) => (value === null || value === undefined ? "–" : Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(value));
  functions.lsNumber = (value) => {
    if (value === null || value === undefined) return "–";
    if (typeof value === "string") return value === "inf" ? "∞" : value === "-inf" ? "−∞" : value;
    const size = Math.abs(value);
    if (size !== 0 && (size >= 1e5 || size < 1e-3)) return value.toExponential(1);
    return String(Number(value.toPrecision(4)));
  };

  /* Search: words, and field:value, field>number. Every part must hold. */
  let parts = [], filters = new Set(), grid = null;
  const FIELDS = ["name", "injection", "norm", "width", "lr", "size", "seed", "loss", "radius", "state_norm", "steps", "alert", "state", "verdict", "gate", "variable"];
  const ALIASES = { run: "name", rho: "radius", "ρ": "radius", parameters: "size", step: "steps" };
  const WORDS = ["verdict", "gate", "state", "injection", "norm"]; /* "stable" must not find "unstable" */
  const TEXT = ["name", "injection", "norm", "verdict", "gate", "state", "alert", "variable", "sentence", "fault"];
  const parse = (text) => {
    const found = [], wrong = [];
    for (const word of (text || "").trim().split(/\s+/).filter(Boolean)) {
      const match = word.match(/^([^:<>=]+)(>=|<=|:|>|<|=)(.*)$/);
      if (!match) found.push({ word: word.toLowerCase() });
      else {
        const field = ALIASES[match[1].toLowerCase()] || match[1].toLowerCase();
        const number = Number(match[3]);
        if (!FIELDS.includes(field)) wrong.push(`no field ${match[1]}; there are ${FIELDS.join(", ")}`);
        else if (match[3] === "") continue; /* still being typed */
        else if (/[<>]/.test(match[2]) && !Number.isFinite(number)) wrong.push(`${word}: ${match[3]} is no number`);
        else found.push({ field, how: match[2], value: match[3].toLowerCase(), number });
      }
    }
    return [found, wrong.join("; ")];
  };
  const holds = (row, part) => {
    if (part.word !== undefined) return TEXT.some((field) => String(row[field] ?? "").toLowerCase().includes(part.word));
    const value = row[part.field];
    if (value === null || value === undefined) return false;
    const number = value === "inf" ? Infinity : Number(value);
    switch (part.how) {
      case ">": return number > part.number;
      case "<": return number < part.number;
      case ">=": return number >= part.number;
      case "<=": return number <= part.number;
      case "=": return String(value).toLowerCase() === part.value || (Number.isFinite(part.number) && number === part.number);
      default: return Number.isFinite(part.number) && typeof value === "number" ? number === part.number : WORDS.includes(part.field) ? String(value).toLowerCase().startsWith(part.value) : String(value).toLowerCase().includes(part.value);
    }
  };
  functions.lsPasses = (params) => {
    const row = params.data;
    if (!row) return true;
    if (filters.size && ![...filters].some((one) => { const [field, value] = one.split(":"); return row[field] === value && (field !== "verdict" || row.state !== "unreadable"); })) return false;
    return parts.every((part) => holds(row, part));
  };
  window.loopscope_query = { parse, holds };

  const keep = (changes) => {
    if (window.location.pathname !== "/") return; /* the reader has left, and the next page is on its way */
    const address = new URL(window.location.href);
    for (const [name, value] of Object.entries(changes)) {
      if (value) address.searchParams.set(name, value);
      else address.searchParams.delete(name);
    }
    if (address.href !== window.location.href) window.history.replaceState(window.history.state, "", address);
  };
  const press = () => {
    for (const button of document.querySelectorAll("[data-filter]")) button.setAttribute("aria-pressed", filters.has(button.dataset.filter) ? "true" : "false");
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest && event.target.closest("[data-filter]");
    if (!button) return;
    const filter = button.dataset.filter;
    filters.has(filter) ? filters.delete(filter) : filters.add(filter);
    press();
    keep({ only: [...filters].join(",") });
    if (live()) grid.onFilterChanged();
  });

  /* Enter in a cell of the table follows its link: the cell has the focus, not the link in it. */
  document.addEventListener("keydown", (event) => {
    const at = document.activeElement;
    const link = event.key === "Enter" && at && at.classList.contains("ag-cell") && at.querySelector("a");
    if (link) link.click();
  });

  const dash = (window.dash_clientside = window.dash_clientside || {});
  /* The grid of this page, unless the reader has left it. */
  const live = () => (grid && !grid.isDestroyed() ? grid : null);
  const api = () => window.dash_ag_grid.getApiAsync("runs");
  /* The table hands out its API before its own React part has it, and a row that is selected in between is an error of
     that part. It draws itself again within the same turn of the browser's loop; nobody sees a tenth of a second. */
  const UNTIL_DRAWN = 100;
  let selectable = false;
  let waiting = new Set(); /* ticked runs whose rows are not in the table yet */
  let early = []; /* changes of rows that came before the table was there */
  const tick = () => {
    if (selectable && live()) grid.forEachNode((node) => { if (waiting.delete(node.id)) node.setSelected(true); });
  };
  /* The table's React part puts back the selection that it has heard of last, and it hears late: of two ticks in quick
     succession the second was lost. The ticks are the reader's alone, so it may not; they are kept by `ticksChanged`. */
  const keepTicks = (table) => Object.assign(table, { deselectAll() {}, setNodesSelected() {} });
  const ticked = () => { try { return JSON.parse(sessionStorage.getItem("ticked")) || []; } catch { return []; } };
  const ticksChanged = () => {
    if (!live()) return;
    const ids = [...new Set([...grid.getSelectedNodes().map((node) => node.id), ...waiting])];
    if (JSON.stringify(ids) !== JSON.stringify(ticked())) dash.set_props("ticked", { data: ids });
  };
  let chosen = null;
  const change_rows = ({ rows, gone }) => {
    const add = [], update = [];
    for (const row of rows) (grid.getRowNode(row.id) ? update : add).push(row);
    const remove = gone.map((id) => grid.getRowNode(id)).filter(Boolean).map((node) => node.data);
    grid.applyTransaction({ add, update, remove });
    /* Their error takes up the whole row, which a row that was there before learns only when it is drawn anew. */
    const broken = update.filter((row) => row.state === "unreadable").map((row) => grid.getRowNode(row.id)).filter(Boolean);
    if (broken.length) grid.redrawRows({ rowNodes: broken });
    tick();
    if (update.length) grid.refreshCells({ columns: ["verdict", "gate", "name", "variable", "alert"], force: true });
    if (rows.some((row) => row.verdict)) fit(chosen || []);
  };

  const OFTEN_EMPTY = ["variable", "injection", "norm", "radius"];
  /* A phone shows what decides; the rest is one tap away. */
  const fit = (columns) => {
    if (!live() || !document.getElementById("runs")) return;
    const width = document.getElementById("runs").clientWidth;
    const room = width >= 1150 ? null : width >= 700 ? ["gate", "variable", "injection", "lr", "spark", "radius", "alert", "state"] : ["gate"];
    const has = new Set(); /* a column in which no run has anything is left out */
    grid.forEachNode(({ data }) => { for (const one of OFTEN_EMPTY) if (data && data[one] !== null && data[one] !== undefined && data[one] !== "") has.add(one); });
    const tight = has.has("variable") && width < 1290 ? ["norm"] : [];
    const all = ["gate", "variable", "injection", "norm", "width", "lr", "size", "seed", "spark", "radius", "state_norm", "steps", "alert", "started", "state"];
    const shown = all.filter((one) => columns.includes(one) && (room === null || room.includes(one)) && !tight.includes(one)
      && (!OFTEN_EMPTY.includes(one) || has.has(one) || (one !== "variable" && !grid.getDisplayedRowCount())));
    grid.setColumnWidths([{ key: "verdict", newWidth: width >= 700 ? 136 : 104 }]); /* a phone has no room for the regimes behind it */
    grid.setColumnsVisible(all, false);
    grid.setColumnsVisible(shown, true);
  };

  Object.assign((dash.loopscope = dash.loopscope || {}), {
    runs_ready() {
      const asked = new URL(window.location.href).searchParams;
      filters = new Set((asked.get("only") || "").split(",").filter(Boolean));
      selectable = false;
      early = [];
      api().then((found) => {
        if (found.isDestroyed()) return;
        grid = keepTicks(found);
        const [column, way] = (asked.get("sort") || "").split(".");
        if (column) grid.applyColumnState({ state: [{ colId: column, sort: way === "desc" ? "desc" : "asc" }], defaultState: { sort: null } });
        if (asked.get("columns")) dash.set_props("columns", { value: asked.get("columns").split(",") });
        if (asked.get("q")) dash.set_props("query", { value: asked.get("q") });
        waiting = new Set(ticked());
        setTimeout(() => {
          if (grid !== found || found.isDestroyed()) return;
          selectable = true;
          tick();
        }, UNTIL_DRAWN);
        fit(chosen || []);
        for (const change of early.splice(0)) change_rows(change);
        press();
        grid.onFilterChanged();
        grid.addEventListener("selectionChanged", ticksChanged);
        grid.addEventListener("gridSizeChanged", () => { fit(chosen || []); grid.resetRowHeights(); });
        grid.addEventListener("sortChanged", () => {
          const sorted = grid.getColumnState().find((state) => state.sort && state.colId !== "attention");
          keep({ sort: sorted ? `${sorted.colId}.${sorted.sort}` : "" });
        });
        document.getElementById("runs").classList.add("ls-fitted");
      });
      return dash.no_update;
    },
    runs_query(text) {
      const [found, wrong] = parse(text);
      parts = found;
      if (text !== undefined && text !== null) keep({ q: text });
      if (live()) grid.onFilterChanged();
      return wrong;
    },
    runs_columns(columns) {
      chosen = columns;
      if (dash.callback_context.triggered.length) keep({ columns: columns.join(",") });
      if (live()) fit(columns);
      return "ls-columns";
    },
    runs_change(change) {
      if (change && live()) change_rows(change);
      else if (change) early.push(change);
      requestAnimationFrame(press);
      return dash.no_update;
    },
  });
})();
