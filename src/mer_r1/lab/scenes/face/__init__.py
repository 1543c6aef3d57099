"""The rendered head: shape, appearance, skin and rasteriser."""
