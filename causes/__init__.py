"""Why an alert came, by experiment: the steps before it are run again, each time with one thing changed."""
