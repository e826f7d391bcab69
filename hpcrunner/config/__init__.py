"""What a site's admin decides: typed options from YAML files, the environment and the command line."""
