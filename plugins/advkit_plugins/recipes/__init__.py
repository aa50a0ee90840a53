"""Published training recipes, one TOML file each; `advkit recipes list` shows them."""
