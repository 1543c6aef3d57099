"""Records, scores with intervals, the engines that answer, label extraction and the report page."""
