"""The demo: 300 real product reviews of seven days, summarized and labelled, and a report. `workspace.yaml` loads `demo.definitions`."""
