/* The address follows the settings of a page, so that a reload or a shared link shows the same; the history is left alone. */
(() => {
  const dash = (window.dash_clientside = window.dash_clientside || {});
  Object.assign((dash.loopscope = dash.loopscope || {}), {
    address(query) {
      if (typeof query === "string" && query !== window.location.search) {
        window.history.replaceState(window.history.state, "", window.location.pathname + query);
      }
      return dash.no_update;
    },
    /* A click on a mark of the map opens its run; only addresses of this dashboard's runs are followed. */
    follow_mark(click) {
      const href = click && click.points && click.points[0] && click.points[0].customdata;
      if (typeof href === "string" && href.startsWith("/run/")) dash.set_props("address", { pathname: href, search: "", hash: "" });
      return dash.no_update;
    },
  });
})();
