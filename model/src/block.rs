//! One transformer block: attention, then a gated feed-forward, each added to its input.
//!
//! The backward pass is written out by hand from the pairs of `chandler-kernels`. Norms and gated
//! products are computed again from what they were computed from, so what is saved of a block is
//! `x`, q, k (before their norm where they have one), v, the attention's output, the sum in the
//! middle, gate and up.

use candle_core::{Result, Tensor};
use chandler_kernels::activation::{self, Activation};
use chandler_kernels::{attention, elementwise, rope};

use crate::linear::{InputGradient, Linear};
use crate::norm::Norm;
use crate::params::{Gradients, ParamId, Params};
use crate::rope::Angles;

#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) input_norm: Norm,
    pub(crate) q: Linear,
    pub(crate) k: Linear,
    pub(crate) v: Linear,
    pub(crate) o: Linear,
    pub(crate) q_norm: Option<Norm>,
    pub(crate) k_norm: Option<Norm>,
    pub(crate) post_attention_norm: Option<Norm>,
    pub(crate) feed_forward_norm: Norm,
    pub(crate) gate: Linear,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
    pub(crate) post_feed_forward_norm: Option<Norm>,
    pub(crate) activation: Activation,
    pub(crate) attention: attention::Params,
    pub(crate) head_dim: usize,
    /// Turns by the angles of sliding-window layers.
    pub(crate) sliding_rope: bool,
}

/// What a block's backward pass needs of its forward pass.
#[derive(Debug)]
pub struct SavedBlock {
    x: Tensor,
    q: Heads,
    k: Heads,
    v: Tensor,
    attended: Tensor,
    kept: attention::Kept,
    /// Before the norm; only where there is one.
    projected: Option<Tensor>,
    middle: Tensor,
    gate: Tensor,
    up: Tensor,
    /// Before the norm; only where there is one.
    fed: Option<Tensor>,
}

/// Queries or keys, in the form from which the other one is cheap.
#[derive(Debug)]
enum Heads {
    /// Before norm and rotation: the norm's backward pass needs them so.
    Raw(Tensor),
    /// As attention reads them.
    Turned(Tensor),
}

impl Heads {
    fn save(norm: Option<Norm>, raw: Tensor, turned: Tensor) -> Self {
        if norm.is_some() { Self::Raw(raw) } else { Self::Turned(turned) }
    }

    fn turned(&self, params: &Params, norm: Option<Norm>, angles: &Angles) -> Result<Tensor> {
        match self {
            Self::Raw(raw) => Block::turned(params, norm, raw, angles),
            Self::Turned(turned) => Ok(turned.clone()),
        }
    }

    fn backward(
        &self,
        params: &Params,
        norm: Option<Norm>,
        angles: &Angles,
        dy: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        match (norm, self) {
            (Some(norm), Self::Raw(raw)) => {
                norm.backward_turned(params, raw, angles, dy, gradients)
            }
            _ => rope::backward(dy, &angles.cos, &angles.sin),
        }
    }

    fn tensor(&self) -> &Tensor {
        match self {
            Self::Raw(tensor) | Self::Turned(tensor) => tensor,
        }
    }
}

impl SavedBlock {
    /// Bytes that it keeps, its input included.
    pub fn bytes(&self) -> usize {
        let always = [
            &self.x,
            self.q.tensor(),
            self.k.tensor(),
            &self.v,
            &self.attended,
            &self.middle,
            &self.gate,
            &self.up,
        ];
        let sometimes = [&self.projected, &self.fed];
        let tensors = always.into_iter().chain(sometimes.into_iter().flatten());
        let bytes = |t: &Tensor| t.elem_count() * t.dtype().size_in_bytes();
        tensors.map(bytes).sum::<usize>() + self.kept.bytes()
    }
}

/// What a backward pass reads, and where gradients go.
pub(crate) struct BackwardPass<'a> {
    pub(crate) params: &'a Params,
    pub(crate) angles: &'a Angles,
    pub(crate) cu_seqlens: &'a [u32],
    pub(crate) gradients: &'a mut Gradients,
}

impl BackwardPass<'_> {
    /// The backward pass of a layer whose input nobody else reads.
    fn linear(&mut self, linear: &Linear, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
        let mut dx = InputGradient::wanted(true);
        linear.backward(self.params, x, dy, self.gradients, &mut dx)?;
        Ok(dx.take().expect("asked for"))
    }
}

impl Block {
    /// `x [N, E]` → `[N, E]`, and everything that [`backward`](Self::backward) needs.
    pub(crate) fn forward(
        &self,
        params: &Params,
        x: &Tensor,
        angles: &Angles,
        cu_seqlens: &[u32],
    ) -> Result<(Tensor, SavedBlock)> {
        let mut saved = self.up_to_gates(params, x, angles, cu_seqlens)?;
        let fed = self.fed(params, &saved.gate, &saved.up)?;
        let y = self.output(params, &saved.middle, &fed)?;
        saved.fed = self.post_feed_forward_norm.map(|_| fed);
        Ok((y, saved))
    }

    /// Everything that [`backward`](Self::backward) needs, without the output.
    pub(crate) fn saved(
        &self,
        params: &Params,
        x: &Tensor,
        angles: &Angles,
        cu_seqlens: &[u32],
    ) -> Result<SavedBlock> {
        let mut saved = self.up_to_gates(params, x, angles, cu_seqlens)?;
        if self.post_feed_forward_norm.is_some() {
            saved.fed = Some(self.fed(params, &saved.gate, &saved.up)?);
        }
        Ok(saved)
    }

    /// What both have in common: all that is saved but `fed`.
    fn up_to_gates(
        &self,
        params: &Params,
        x: &Tensor,
        angles: &Angles,
        cu_seqlens: &[u32],
    ) -> Result<SavedBlock> {
        let normed = self.input_norm.forward(params, x)?;
        let heads = |linear: &Linear| self.heads(&linear.forward(params, &normed)?);
        let (raw_q, raw_k, v) = (heads(&self.q)?, heads(&self.k)?, heads(&self.v)?);
        let q = Self::turned(params, self.q_norm, &raw_q, angles)?;
        let k = Self::turned(params, self.k_norm, &raw_k, angles)?;
        let (attended, kept) = attention::forward_kept(&q, &k, &v, cu_seqlens, self.attention)?;
        let attended = attended.flatten_from(1)?;
        let projected = self.o.forward(params, &attended)?;
        let [middle, normed] = self.middle(params, x, &projected)?;
        let [gate, up] = self.gates(params, &normed)?;
        Ok(SavedBlock {
            x: x.clone(),
            q: Heads::save(self.q_norm, raw_q, q),
            k: Heads::save(self.k_norm, raw_k, k),
            v,
            attended,
            kept,
            projected: self.post_attention_norm.map(|_| projected),
            middle,
            gate,
            up,
            fed: None,
        })
    }

    /// Adds the gradients of the trainable parameters and returns that of `x`, where it is wanted.
    pub(crate) fn backward(
        &self,
        pass: &mut BackwardPass,
        saved: SavedBlock,
        dy: &Tensor,
        wants_input: bool,
    ) -> Result<Option<Tensor>> {
        let SavedBlock { x, q, k, v, attended, kept, projected, middle, gate, up, fed } = saved;
        let d_middle = self.feed_forward_backward(pass, &middle, [gate, up], fed, dy)?;
        drop(middle);
        let d_projected = match (self.post_attention_norm, projected) {
            (Some(norm), Some(projected)) => {
                norm.backward(pass.params, &projected, &d_middle, pass.gradients)?
            }
            _ => d_middle.clone(),
        };
        let d_attended = pass.linear(&self.o, &attended, &d_projected)?;
        let kept = kept.with_output(&self.heads(&attended)?, &self.heads(&d_attended)?)?;
        drop((attended, d_projected));
        let [d_q, d_k, d_v] = self.attention_backward(pass, [q, k], v, d_attended, kept)?;
        let wants_input = wants_input || pass.params.trains(self.input_norm.weight);
        let normed = self.input_norm.forward(pass.params, &x)?;
        let mut d_normed = InputGradient::wanted(wants_input);
        for (linear, dy) in [(&self.q, d_q), (&self.k, d_k), (&self.v, d_v)] {
            let dy = dy.flatten_from(1)?;
            linear.backward(pass.params, &normed, &dy, pass.gradients, &mut d_normed)?;
        }
        let Some(d_normed) = d_normed.take() else { return Ok(None) };
        let (params, gradients) = (pass.params, &mut *pass.gradients);
        self.input_norm.backward_add(params, &x, &d_normed, &d_middle, gradients).map(Some)
    }

    /// Gradients of the three projections' outputs, from that of attention's.
    fn attention_backward(
        &self,
        pass: &mut BackwardPass,
        [saved_q, saved_k]: [Heads; 2],
        v: Tensor,
        d_attended: Tensor,
        kept: attention::Kept,
    ) -> Result<[Tensor; 3]> {
        let (params, angles) = (pass.params, pass.angles);
        let q = saved_q.turned(params, self.q_norm, angles)?;
        let k = saved_k.turned(params, self.k_norm, angles)?;
        let dy = self.heads(&d_attended)?;
        let (cu_seqlens, params_of) = (pass.cu_seqlens, self.attention);
        let [dq, dk, dv] = attention::backward_kept(&q, &k, &v, cu_seqlens, params_of, &dy, &kept)?;
        drop((q, k, v, dy, d_attended, kept));
        let dq = saved_q.backward(params, self.q_norm, angles, &dq, pass.gradients)?;
        let dk = saved_k.backward(params, self.k_norm, angles, &dk, pass.gradients)?;
        Ok([dq, dk, dv])
    }

    /// The gradient of the sum in the middle: `dy`, and what comes back through the feed-forward.
    fn feed_forward_backward(
        &self,
        pass: &mut BackwardPass,
        middle: &Tensor,
        [gate, up]: [Tensor; 2],
        fed: Option<Tensor>,
        dy: &Tensor,
    ) -> Result<Tensor> {
        let d_fed = match (self.post_feed_forward_norm, fed) {
            (Some(norm), Some(fed)) => norm.backward(pass.params, &fed, dy, pass.gradients)?,
            _ => dy.clone(),
        };
        let d_narrow = self.down.narrow_gradient(pass.params, &d_fed)?;
        let mut d_gated = InputGradient::wanted(true);
        self.down.input_gradient(pass.params, &d_fed, d_narrow.as_ref(), &mut d_gated)?;
        let d_gated = d_gated.take().expect("asked for");
        let (gated, d_gate, d_up) =
            activation::backward_with_output(&gate, &up, self.activation, &d_gated)?;
        drop((gate, up, d_gated));
        let d_narrow = d_narrow.as_ref();
        self.down.parameter_gradients(pass.params, &gated, &d_fed, d_narrow, pass.gradients)?;
        drop((gated, d_fed));
        let normed = self.feed_forward_norm.forward(pass.params, middle)?;
        let mut d_normed = InputGradient::wanted(true);
        for (linear, dy) in [(&self.gate, d_gate), (&self.up, d_up)] {
            linear.backward(pass.params, &normed, &dy, pass.gradients, &mut d_normed)?;
        }
        let d_normed = d_normed.take().expect("asked for");
        let (params, gradients) = (pass.params, &mut *pass.gradients);
        self.feed_forward_norm.backward_add(params, middle, &d_normed, dy, gradients)
    }

    /// `[N, H·D]` → `[N, H, D]`
    pub(crate) fn heads(&self, x: &Tensor) -> Result<Tensor> {
        let (tokens, width) = x.dims2()?;
        x.reshape((tokens, width / self.head_dim, self.head_dim))
    }

    pub(crate) fn turned(
        params: &Params,
        norm: Option<Norm>,
        raw: &Tensor,
        angles: &Angles,
    ) -> Result<Tensor> {
        match norm {
            Some(norm) => norm.forward_turned(params, raw, angles),
            None => rope::forward(raw, &angles.cos, &angles.sin),
        }
    }

    /// The sum in the middle, of `x` and what attention's output projection adds to it, and that
    /// sum as the feed-forward reads it.
    pub(crate) fn middle(
        &self,
        params: &Params,
        x: &Tensor,
        projected: &Tensor,
    ) -> Result<[Tensor; 2]> {
        let added = Self::after(params, self.post_attention_norm, projected)?;
        self.feed_forward_norm.forward_add(params, x, &added)
    }

    /// What the feed-forward multiplies.
    pub(crate) fn gates(&self, params: &Params, normed: &Tensor) -> Result<[Tensor; 2]> {
        Ok([self.gate.forward(params, normed)?, self.up.forward(params, normed)?])
    }

    /// The feed-forward's output before its norm.
    pub(crate) fn fed(&self, params: &Params, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        self.down.forward(params, &activation::forward(gate, up, self.activation)?)
    }

    /// The sum in the middle, and what the feed-forward adds to it.
    pub(crate) fn output(&self, params: &Params, middle: &Tensor, fed: &Tensor) -> Result<Tensor> {
        elementwise::add(middle, &Self::after(params, self.post_feed_forward_norm, fed)?)
    }

    /// The same, and it as the block behind this one reads it, by the `next` block's norm.
    pub(crate) fn output_and_normed(
        &self,
        params: &Params,
        middle: &Tensor,
        fed: &Tensor,
        next: Norm,
    ) -> Result<[Tensor; 2]> {
        let added = Self::after(params, self.post_feed_forward_norm, fed)?;
        next.forward_add(params, middle, &added)
    }

    /// What is added to the residual stream: `x`, after its norm where it has one.
    fn after(params: &Params, norm: Option<Norm>, x: &Tensor) -> Result<Tensor> {
        norm.map_or_else(|| Ok(x.clone()), |norm| norm.forward(params, x))
    }
}

impl Block {
    /// Every parameter, those of adapters included.
    pub(crate) fn params(&self) -> Vec<ParamId> {
        let norms = [
            Some(self.input_norm),
            self.q_norm,
            self.k_norm,
            self.post_attention_norm,
            Some(self.feed_forward_norm),
            self.post_feed_forward_norm,
        ];
        Self::params_of(&norms, self.linears().map(|(_, linear)| linear))
    }

    /// Those up to the output projection of attention and its norm.
    pub(crate) fn attention_params(&self) -> Vec<ParamId> {
        let norms = [Some(self.input_norm), self.q_norm, self.k_norm, self.post_attention_norm];
        Self::params_of(&norms, [&self.q, &self.k, &self.v, &self.o])
    }

    /// The other ones.
    pub(crate) fn feed_forward_params(&self) -> Vec<ParamId> {
        let norms = [Some(self.feed_forward_norm), self.post_feed_forward_norm];
        Self::params_of(&norms, [&self.gate, &self.up, &self.down])
    }

    fn params_of<const N: usize>(norms: &[Option<Norm>], linears: [&Linear; N]) -> Vec<ParamId> {
        let mut ids: Vec<ParamId> = norms.iter().flatten().map(|norm| norm.weight).collect();
        for linear in linears {
            ids.push(linear.weight);
            ids.extend(linear.bias);
            ids.extend(linear.adapter.into_iter().flat_map(|adapter| [adapter.a, adapter.b]));
        }
        ids
    }

    /// The linear layers by their names within the block.
    pub(crate) fn linears(&self) -> [(&'static str, &Linear); 7] {
        [
            ("self_attn.q_proj", &self.q),
            ("self_attn.k_proj", &self.k),
            ("self_attn.v_proj", &self.v),
            ("self_attn.o_proj", &self.o),
            ("mlp.gate_proj", &self.gate),
            ("mlp.up_proj", &self.up),
            ("mlp.down_proj", &self.down),
        ]
    }

    /// The same, to change.
    pub(crate) fn linears_mut(&mut self) -> [(&'static str, &mut Linear); 7] {
        [
            ("self_attn.q_proj", &mut self.q),
            ("self_attn.k_proj", &mut self.k),
            ("self_attn.v_proj", &mut self.v),
            ("self_attn.o_proj", &mut self.o),
            ("mlp.gate_proj", &mut self.gate),
            ("mlp.up_proj", &mut self.up),
            ("mlp.down_proj", &mut self.down),
        ]
    }
}
