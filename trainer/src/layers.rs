//! What each layer measures in a step: the size of its gradient, of its update and of its weights.

use candle_core::Tensor;
use chandler_kernels::adamw::{self, Moved};
use chandler_model::{CausalLm, ParamId};
use serde::{Deserialize, Serialize};

use crate::TrainError;

/// The norms of one layer in one step: of the embedding, of a block, of the final norm, or of a
/// head that is not the embedding. What is frozen does not count.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerNorms {
    /// As in the names of its parameters: `embed_tokens`, `layers.0`, `norm`, `lm_head`.
    pub layer: String,
    /// L2 norm of its gradients before clipping.
    pub grad_norm: f64,
    /// L2 norm of what the step added to its weights; `None` where it is not measured.
    pub update_norm: Option<f64>,
    /// L2 norm of its weights after the step; `None` where it is not measured.
    pub weight_norm: Option<f64>,
}

impl LayerNorms {
    /// How far the step has moved the layer, by its size; `None` where that is not known.
    pub fn update_ratio(&self) -> Option<f64> {
        let (update, weight) = self.update_norm.zip(self.weight_norm)?;
        (weight > 0.0).then(|| update / weight)
    }
}

/// The layers of a model while a step measures them.
pub(crate) struct LayerSums {
    /// Which of `layers` a parameter is in, in the order of the parameters.
    places: Vec<(ParamId, usize)>,
    /// In the model's order.
    layers: Vec<LayerSum>,
}

struct LayerSum {
    name: String,
    grad_squares: f64,
    moved: Option<Moved>,
}

impl LayerSums {
    /// Nothing yet, for what a model trains.
    pub(crate) fn new(model: &CausalLm) -> Self {
        let (mut places, mut layers) = (vec![], Vec::<LayerSum>::new());
        for (id, param) in model.params().trainable() {
            let name = layer_of(&param.name);
            let known = layers.iter().position(|layer| layer.name == name);
            places.push((id, known.unwrap_or(layers.len())));
            if known.is_none() {
                let (name, moved) = (name.to_owned(), Some(Moved::default()));
                layers.push(LayerSum { name, grad_squares: 0.0, moved });
            }
        }
        Self { places, layers }
    }

    /// Adds the gradients of some parameters.
    pub(crate) fn add_gradients<'a>(
        &mut self,
        gradients: impl Iterator<Item = (ParamId, &'a Tensor)>,
    ) -> Result<(), TrainError> {
        let (ids, gradients): (Vec<ParamId>, Vec<&Tensor>) = gradients.unzip();
        for (id, squares) in ids.into_iter().zip(adamw::squares_of_each(&gradients)?) {
            if let Some(layer) = self.layer(id) {
                layer.grad_squares += squares;
            }
        }
        Ok(())
    }

    /// Adds how far a parameter has moved, if that is known.
    pub(crate) fn add_move(&mut self, id: ParamId, moved: Option<Moved>) {
        if let Some(layer) = self.layer(id) {
            layer.moved = layer.moved.zip(moved).map(|(all, one)| all + one);
        }
    }

    fn layer(&mut self, id: ParamId) -> Option<&mut LayerSum> {
        let place = self.places.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        self.layers.get_mut(self.places[place].1)
    }

    /// The norms of all layers.
    pub(crate) fn norms(self) -> Vec<LayerNorms> {
        self.layers.into_iter().map(LayerSum::norms).collect()
    }
}

impl LayerSum {
    fn norms(self) -> LayerNorms {
        let norm = |squares: fn(Moved) -> f64| {
            let norm = self.moved.map(|moved| squares(moved).sqrt());
            norm.filter(|norm| norm.is_finite())
        };
        LayerNorms {
            grad_norm: self.grad_squares.sqrt(),
            update_norm: norm(|moved| moved.update_squares),
            weight_norm: norm(|moved| moved.weight_squares),
            layer: self.name,
        }
    }
}

/// The layer that a parameter is in, by its name.
fn layer_of(param: &str) -> &str {
    let name = param.strip_prefix("model.").unwrap_or(param);
    let parts = if name.starts_with("layers.") { 2 } else { 1 };
    let ends = name.match_indices('.').nth(parts - 1).map(|(at, _)| at);
    &name[..ends.unwrap_or(name.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_is_in_the_layer_that_its_name_says() {
        for (param, layer) in [
            ("model.embed_tokens.weight", "embed_tokens"),
            ("model.layers.0.input_layernorm.weight", "layers.0"),
            ("model.layers.17.self_attn.q_proj.lora_A.weight", "layers.17"),
            ("model.norm.weight", "norm"),
            ("lm_head.weight", "lm_head"),
        ] {
            assert_eq!(layer_of(param), layer);
        }
    }
}
