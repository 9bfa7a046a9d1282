"""What PipeFusion's stages need beyond one cache per stage."""
