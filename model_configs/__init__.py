"""The descriptors that travel with omz_tools, one folder for each model; installed as omz_tools.model_configs."""
