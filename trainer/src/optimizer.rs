//! AdamW over a model's parameters: which state each of them has, and what is kept in which type.

use candle_core::{DType, Tensor};
use chandler_kernels::adamw::{self, Clip, Halt, Moments, Moved, Weights};
use chandler_model::{CausalLm, Gradients, Param, ParamId};

use crate::{MomentsDtype, TrainError, TrainSettings};

/// Optimizer state of every trainable parameter, in the model's order.
#[derive(Debug)]
pub(crate) struct AdamW {
    states: Vec<State>,
    /// On a GPU, which looks at loss and norm before the host does.
    halt: Option<Halt>,
    /// Gradients of matrices are in the model's own type.
    narrow_gradients: bool,
}

#[derive(Debug)]
struct State {
    id: ParamId,
    /// The weight in f32, where the model's own is narrower and there is one.
    master: Option<Tensor>,
    moments: Moments,
}

/// How far and when a step moves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    pub(crate) lr: f64,
    /// From 1.
    pub(crate) step: u64,
}

/// What gradients are multiplied by.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Factor<'a> {
    Known(f64),
    /// A GPU works it out.
    OnGpu(&'a Clip),
}

impl Rate {
    /// `value`, unless it is NaN or infinite.
    pub(crate) fn finite(self, what: &'static str, value: f64) -> Result<f64, TrainError> {
        let step = self.step;
        if value.is_finite() { Ok(value) } else { Err(TrainError::NotFinite { step, what, value }) }
    }
}

impl AdamW {
    pub(crate) fn new(model: &CausalLm, settings: &TrainSettings) -> Result<Self, TrainError> {
        let state = |(id, param): (ParamId, &Param)| {
            // Norms and biases are few: they cost nothing in f32, and gain from it.
            let is_matrix = param.value.rank() == 2;
            let keeps_master =
                param.value.dtype() != DType::F32 && (settings.master_weights || !is_matrix);
            let master = keeps_master.then(|| param.value.to_dtype(DType::F32)).transpose()?;
            let narrow = is_matrix && settings.moments == MomentsDtype::Blockwise8;
            let moments = zero_moments(&param.value, narrow)?;
            Ok(State { id, master, moments })
        };
        let states = model.params().trainable().map(state).collect::<Result<_, TrainError>>()?;
        let halt = Halt::new(model.device())?;
        Ok(Self { states, halt, narrow_gradients: !settings.master_weights })
    }

    /// State of no parameter.
    pub(crate) fn none() -> Self {
        Self { states: vec![], halt: None, narrow_gradients: false }
    }

    /// No gradients yet, in the type that they are to have.
    pub(crate) fn no_gradients(&self, model: &CausalLm) -> Gradients {
        let none = Gradients::none(model.params());
        if self.narrow_gradients { none.matrices_in(model.dtype()) } else { none }
    }

    /// The norm of these gradients and what clips them, where a GPU works it out and holds the run at
    /// a norm or a loss that is no number.
    pub(crate) fn clip(
        &self,
        gradients: &[&Tensor],
        losses: &[&Tensor],
        max_norm: f64,
    ) -> Result<Option<Clip>, TrainError> {
        let Some(halt) = &self.halt else { return Ok(None) };
        Ok(Clip::new(gradients, losses, max_norm, halt)?)
    }

    /// Moves parameters along their gradients, scaled by `clip`. Frozen ones stay.
    pub(crate) fn step<'a>(
        &'a self,
        model: &'a CausalLm,
        gradients: impl Iterator<Item = (ParamId, &'a Tensor)>,
        settings: &TrainSettings,
        rate: Rate,
        clip: Factor<'a>,
    ) -> Result<(), TrainError> {
        let steps: Vec<adamw::Step> = gradients
            .filter_map(|(id, gradient)| self.step_of(model, id, gradient, settings, rate, clip))
            .collect();
        Ok(adamw::step_all(&steps)?)
    }

    /// How far [`step`](Self::step) has just moved each parameter that is not frozen, and how large it
    /// is now; `None` where that is not known.
    pub(crate) fn moved<'a>(
        &'a self,
        model: &'a CausalLm,
        gradients: impl Iterator<Item = (ParamId, &'a Tensor)>,
        settings: &TrainSettings,
        rate: Rate,
    ) -> Result<Vec<(ParamId, Option<Moved>)>, TrainError> {
        // Clipping is in the moments already.
        let of = |(id, gradient)| {
            let step = self.step_of(model, id, gradient, settings, rate, Factor::Known(1.0))?;
            Some((id, step))
        };
        let (ids, steps): (Vec<_>, Vec<_>) = gradients.filter_map(of).unzip();
        Ok(ids.into_iter().zip(adamw::moved_all(&steps)?).collect())
    }

    fn step_of<'a>(
        &'a self,
        model: &'a CausalLm,
        id: ParamId,
        gradient: &'a Tensor,
        settings: &TrainSettings,
        rate: Rate,
        clip: Factor<'a>,
    ) -> Option<adamw::Step<'a>> {
        let index = self.states.binary_search_by_key(&id, |state| state.id).ok()?;
        let (state, param) = (&self.states[index], model.params().get(id));
        let (grad_scale, clip) = match clip {
            Factor::Known(factor) => (factor, None),
            Factor::OnGpu(clip) => (1.0, Some(clip)),
        };
        let params = adamw::Params {
            lr: rate.lr,
            beta1: settings.adam_beta1,
            beta2: settings.adam_beta2,
            eps: settings.adam_epsilon,
            weight_decay: if param.decays { settings.weight_decay } else { 0.0 },
            step: rate.step,
            grad_scale,
        };
        let weights = match &state.master {
            Some(master) => Weights::Master { master, param: &param.value },
            None if param.value.dtype() == DType::F32 => Weights::F32(&param.value),
            None => {
                let (seed, tensor) = (settings.seed, index as u64);
                Weights::Stochastic { param: &param.value, seed, tensor }
            }
        };
        Some(adamw::Step { weights, moments: &state.moments, grad: gradient, params, clip })
    }

    /// The most precise weight of every trainable parameter, by its name.
    pub(crate) fn masters<'a>(
        &'a self,
        model: &'a CausalLm,
    ) -> impl Iterator<Item = (&'a str, &'a Tensor)> {
        self.states.iter().map(|state| {
            let param = model.params().get(state.id);
            (param.name.as_str(), state.master.as_ref().unwrap_or(&param.value))
        })
    }

    /// Rounds every master weight into the model, after the masters have changed.
    pub(crate) fn round_masters(&self, model: &CausalLm) -> Result<(), TrainError> {
        for state in &self.states {
            let value = &model.params().get(state.id).value;
            if let Some(master) = &state.master {
                value.slice_set(&master.to_dtype(value.dtype())?, 0, 0)?;
            }
        }
        Ok(())
    }

    /// The moments by the names that checkpoints have.
    pub(crate) fn moments(&self, model: &CausalLm) -> Vec<(String, Tensor)> {
        let named = |state: &State| {
            let name = model.params().get(state.id).name.clone();
            let parts = named(&state.moments).into_iter();
            parts
                .map(|(part, tensor)| (format!("{name}.{part}"), tensor.clone()))
                .collect::<Vec<_>>()
        };
        self.states.iter().flat_map(named).collect()
    }

    /// Bytes of the moments, and of the master weights.
    pub(crate) fn bytes(&self) -> (usize, usize) {
        let moments = self.states.iter().map(|state| state.moments.bytes());
        let masters = self.states.iter().filter_map(|state| state.master.as_ref());
        (moments.sum(), masters.map(|master| 4 * master.elem_count()).sum())
    }
}

/// Before the first step.
fn zero_moments(of: &Tensor, narrow: bool) -> Result<Moments, TrainError> {
    Ok(if narrow {
        Moments::blockwise8_zeros(of.elem_count(), of.device())?
    } else {
        Moments::f32_zeros(of.shape(), of.device())?
    })
}

/// The tensors of moments by the names that checkpoints have, after that of their parameter.
fn named(moments: &Moments) -> Vec<(&'static str, &Tensor)> {
    match moments {
        Moments::F32 { first, second } => vec![("exp_avg", first), ("exp_avg_sq", second)],
        Moments::Blockwise8 { first, first_scales, second, second_scales } => vec![
            ("exp_avg", first),
            ("exp_avg.scales", first_scales),
            ("exp_avg_sq", second),
            ("exp_avg_sq.scales", second_scales),
        ],
    }
}

/// The L2 norm over all gradients.
pub(crate) fn global_norm(gradients: &Gradients) -> Result<f64, TrainError> {
    let all: Vec<&Tensor> = gradients.iter().map(|(_, gradient)| gradient).collect();
    Ok(adamw::sum_of_all_squares(&all)?.sqrt())
}

/// The L2 norm of one gradient.
pub(crate) fn norm_of(gradient: &Tensor) -> Result<f64, TrainError> {
    Ok(adamw::sum_of_squares(gradient)?.sqrt())
}

/// PyTorch's clipping coefficient for gradients of this norm; 1 where `max_norm` is 0.
pub(crate) fn clip_coefficient(norm: f64, max_norm: f64) -> f64 {
    if max_norm > 0.0 { (max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 }
}
