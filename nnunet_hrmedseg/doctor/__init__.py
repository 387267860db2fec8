"""The installation: `hrmedseg doctor` checks it, `hrmedseg doctor --fix` (or `link`) completes an editable one."""
