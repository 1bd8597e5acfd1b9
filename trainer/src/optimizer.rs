//! AdamW with f32 moments and, where the model computes in a narrower type, f32 master weights.

use candle_core::{DType, Tensor};
use chandler_kernels::adamw;
use chandler_model::{CausalLm, Gradients, ParamId};

use crate::{TrainError, TrainSettings};

/// Reads a tensor of a name and a shape.
pub(crate) type ReadTensor<'a> = dyn FnMut(&str, &[usize]) -> Result<Tensor, TrainError> + 'a;

/// Optimizer state of every trainable parameter, in the model's order.
#[derive(Debug)]
pub(crate) struct AdamW {
    states: Vec<State>,
}

#[derive(Debug)]
struct State {
    id: ParamId,
    /// The weight in f32; the model's own tensor where that is f32 already.
    master: Tensor,
    first_moment: Tensor,
    second_moment: Tensor,
}

impl AdamW {
    pub(crate) fn new(model: &CausalLm) -> Result<Self, TrainError> {
        let state = |(id, param): (ParamId, &chandler_model::Param)| {
            let master = param.value.to_dtype(DType::F32)?;
            let (first_moment, second_moment) = (master.zeros_like()?, master.zeros_like()?);
            Ok(State { id, master, first_moment, second_moment })
        };
        let states = model.params().trainable().map(state).collect::<Result<_, TrainError>>()?;
        Ok(Self { states })
    }

    /// State of no parameter.
    pub(crate) fn none() -> Self {
        Self { states: vec![] }
    }

    /// Moves every parameter that has a gradient; `step` is 1 at the first.
    pub(crate) fn step(
        &mut self,
        model: &CausalLm,
        gradients: &Gradients,
        settings: &TrainSettings,
        lr: f64,
        step: u64,
        grad_scale: f64,
    ) -> Result<(), TrainError> {
        for state in &self.states {
            let Some(gradient) = gradients.get(state.id) else { continue };
            let param = model.params().get(state.id);
            let params = adamw::Params {
                lr,
                beta1: settings.adam_beta1,
                beta2: settings.adam_beta2,
                eps: settings.adam_epsilon,
                weight_decay: if param.decays { settings.weight_decay } else { 0.0 },
                step,
                grad_scale,
            };
            adamw::step(
                &state.master,
                &state.first_moment,
                &state.second_moment,
                gradient,
                params,
            )?;
            if param.value.dtype() != DType::F32 {
                param.value.slice_set(&state.master.to_dtype(param.value.dtype())?, 0, 0)?;
            }
        }
        Ok(())
    }

    /// The f32 weight of every trainable parameter, by its name.
    pub(crate) fn masters<'a>(
        &'a self,
        model: &'a CausalLm,
    ) -> impl Iterator<Item = (&'a str, &'a Tensor)> {
        self.states.iter().map(|s| (model.params().get(s.id).name.as_str(), &s.master))
    }

    /// The moments by the names that checkpoints have.
    pub(crate) fn moments(&self, model: &CausalLm) -> Vec<(String, Tensor)> {
        let mut all = Vec::with_capacity(2 * self.states.len());
        for state in &self.states {
            let name = &model.params().get(state.id).name;
            all.push((format!("{name}.exp_avg"), state.first_moment.clone()));
            all.push((format!("{name}.exp_avg_sq"), state.second_moment.clone()));
        }
        all
    }

    /// Takes over weights and moments, found by the names that [`masters`](Self::masters) and
    /// [`moments`](Self::moments) give.
    pub(crate) fn restore(
        &mut self,
        model: &CausalLm,
        read: &mut ReadTensor,
    ) -> Result<(), TrainError> {
        for state in &self.states {
            let param = model.params().get(state.id);
            let (name, shape) = (&param.name, param.value.dims());
            let master = read(name, shape)?;
            state.master.slice_set(&master, 0, 0)?;
            if param.value.dtype() != DType::F32 {
                param.value.slice_set(&master.to_dtype(param.value.dtype())?, 0, 0)?;
            }
            state.first_moment.slice_set(&read(&format!("{name}.exp_avg"), shape)?, 0, 0)?;
            state.second_moment.slice_set(&read(&format!("{name}.exp_avg_sq"), shape)?, 0, 0)?;
        }
        Ok(())
    }

    /// Bytes of the moments, and of the master weights that are not the model's own.
    pub(crate) fn bytes(&self, model: &CausalLm) -> (usize, usize) {
        let elements = |states: &mut dyn Iterator<Item = &State>| -> usize {
            states.map(|state| state.master.elem_count()).sum()
        };
        let is_narrow = |s: &&State| model.params().get(s.id).value.dtype() != DType::F32;
        let all = elements(&mut self.states.iter());
        (8 * all, 4 * elements(&mut self.states.iter().filter(is_narrow)))
    }
}

/// The L2 norm over all gradients.
pub(crate) fn global_norm(gradients: &Gradients) -> Result<f64, TrainError> {
    let mut sum = 0.0;
    for (_, gradient) in gradients.iter() {
        sum += adamw::sum_of_squares(gradient)?;
    }
    Ok(sum.sqrt())
}

/// PyTorch's clipping coefficient for gradients of this norm; 1 where `max_norm` is 0.
pub(crate) fn clip_coefficient(norm: f64, max_norm: f64) -> f64 {
    if max_norm > 0.0 { (max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 }
}
