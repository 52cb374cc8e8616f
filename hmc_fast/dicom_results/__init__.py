"""Results as DICOM objects that join a film's study: a measurement report and overlays."""
