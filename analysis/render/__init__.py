"""How a `Result` is shown: as text, as HTML, as figures. Nothing here knows a study."""
