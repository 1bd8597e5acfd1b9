//! Transformer ops for candle tensors with their backward passes.
