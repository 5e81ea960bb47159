"""Tool calls out of a model's text: one parser per family of formats, all of them incremental and pure."""
