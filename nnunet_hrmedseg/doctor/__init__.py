"""The installation: `hrmedseg doctor` checks it, `hrmedseg link` completes an editable one."""
