"""From records to tables and figures. Nothing here starts a run or a plan."""
