"""The paper's figure: image → generator → mixture weights → token library → prompt patches."""
