//! One transformer block: attention, then a gated feed-forward, each added to its input.
//!
//! The backward pass is written out by hand from the pairs of `chandler-kernels`. Norms and gated
//! products are computed again from what they were computed from, so what is saved of a block is
//! `x`, q, k, v, the attention's output, the sum in the middle, gate and up.

use candle_core::{Result, Tensor};
use chandler_kernels::activation::{self, Activation};
use chandler_kernels::{attention, rope};

use crate::kv_cache::{LayerCache, Span};
use crate::linear::Linear;
use crate::norm::Norm;
use crate::params::{Gradients, Params};
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
    /// Before the norm and the rotation; only where there is a norm.
    raw_q: Option<Tensor>,
    raw_k: Option<Tensor>,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attended: Tensor,
    /// Before the norm; only where there is one.
    projected: Option<Tensor>,
    middle: Tensor,
    gate: Tensor,
    up: Tensor,
    /// Before the norm; only where there is one.
    fed: Option<Tensor>,
}

impl SavedBlock {
    /// Bytes that it keeps, its input included.
    pub fn bytes(&self) -> usize {
        let always = [
            &self.x,
            &self.q,
            &self.k,
            &self.v,
            &self.attended,
            &self.middle,
            &self.gate,
            &self.up,
        ];
        let sometimes = [&self.raw_q, &self.raw_k, &self.projected, &self.fed];
        let tensors = always.into_iter().chain(sometimes.into_iter().flatten());
        tensors.map(|t| t.elem_count() * t.dtype().size_in_bytes()).sum()
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
        let normed = self.input_norm.forward(params, x)?;
        let heads = |linear: &Linear| self.heads(&linear.forward(params, &normed)?);
        let (raw_q, raw_k, v) = (heads(&self.q)?, heads(&self.k)?, heads(&self.v)?);
        let q = Self::turned(params, self.q_norm, &raw_q, angles)?;
        let k = Self::turned(params, self.k_norm, &raw_k, angles)?;
        let attended =
            attention::forward(&q, &k, &v, cu_seqlens, self.attention)?.flatten_from(1)?;
        let (projected, added) = self.project(params, &attended)?;
        let middle = (x + added)?;
        let Fed { gate, up, fed, y } = self.feed_forward(params, &middle)?;
        let saved = SavedBlock {
            x: x.clone(),
            raw_q: self.q_norm.map(|_| raw_q),
            raw_k: self.k_norm.map(|_| raw_k),
            q,
            k,
            v,
            attended,
            projected: self.post_attention_norm.map(|_| projected),
            middle,
            gate,
            up,
            fed: self.post_feed_forward_norm.map(|_| fed),
        };
        Ok((y, saved))
    }

    /// The block over new tokens whose past stands in `cache`, which gets their keys and values.
    pub(crate) fn forward_cached(
        &self,
        params: &Params,
        x: &Tensor,
        angles: &Angles,
        spans: &[Span],
        cache: &mut LayerCache,
    ) -> Result<Tensor> {
        let normed = self.input_norm.forward(params, x)?;
        let heads = |linear: &Linear| self.heads(&linear.forward(params, &normed)?);
        let q = Self::turned(params, self.q_norm, &heads(&self.q)?, angles)?;
        let k = Self::turned(params, self.k_norm, &heads(&self.k)?, angles)?;
        let v = heads(&self.v)?;
        let mut rows = Vec::with_capacity(spans.len());
        for span in spans {
            let new = |t: &Tensor| t.narrow(0, span.start, span.len);
            let (keys, values) = cache.extend(span, &new(&k)?, &new(&v)?)?;
            let past = span.past;
            rows.push(attention::forward_from(&new(&q)?, &keys, &values, past, self.attention)?);
        }
        let attended = Tensor::cat(&rows, 0)?.flatten_from(1)?;
        let middle = (x + self.project(params, &attended)?.1)?;
        Ok(self.feed_forward(params, &middle)?.y)
    }

    /// Adds the gradients of the trainable parameters and returns that of `x`.
    pub(crate) fn backward(
        &self,
        params: &Params,
        saved: &SavedBlock,
        angles: &Angles,
        cu_seqlens: &[u32],
        dy: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let d_middle = (dy + self.feed_forward_backward(params, saved, dy, gradients)?)?;
        let d_projected = match (self.post_attention_norm, &saved.projected) {
            (Some(norm), Some(projected)) => {
                norm.backward(params, projected, &d_middle, gradients)?
            }
            _ => d_middle.clone(),
        };
        let d_attended = self.o.backward(params, &saved.attended, &d_projected, gradients)?;
        let [dq, dk, dv] = attention::backward(
            &saved.q,
            &saved.k,
            &saved.v,
            cu_seqlens,
            self.attention,
            &self.heads(&d_attended)?,
        )?;
        let dq = Self::turned_backward(params, self.q_norm, &saved.raw_q, angles, &dq, gradients)?;
        let dk = Self::turned_backward(params, self.k_norm, &saved.raw_k, angles, &dk, gradients)?;
        let normed = self.input_norm.forward(params, &saved.x)?;
        let d_q = self.q.backward(params, &normed, &dq.flatten_from(1)?, gradients)?;
        let d_k = self.k.backward(params, &normed, &dk.flatten_from(1)?, gradients)?;
        let d_v = self.v.backward(params, &normed, &dv.flatten_from(1)?, gradients)?;
        let d_normed = ((d_q + d_k)? + d_v)?;
        d_middle + self.input_norm.backward(params, &saved.x, &d_normed, gradients)?
    }

    fn feed_forward_backward(
        &self,
        params: &Params,
        saved: &SavedBlock,
        dy: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let d_fed = match (self.post_feed_forward_norm, &saved.fed) {
            (Some(norm), Some(fed)) => norm.backward(params, fed, dy, gradients)?,
            _ => dy.clone(),
        };
        let gated = activation::forward(&saved.gate, &saved.up, self.activation)?;
        let d_gated = self.down.backward(params, &gated, &d_fed, gradients)?;
        let (d_gate, d_up) =
            activation::backward(&saved.gate, &saved.up, self.activation, &d_gated)?;
        let normed = self.feed_forward_norm.forward(params, &saved.middle)?;
        let d_normed = (self.gate.backward(params, &normed, &d_gate, gradients)?
            + self.up.backward(params, &normed, &d_up, gradients)?)?;
        self.feed_forward_norm.backward(params, &saved.middle, &d_normed, gradients)
    }

    /// `[N, H·D]` → `[N, H, D]`
    fn heads(&self, x: &Tensor) -> Result<Tensor> {
        let (tokens, width) = x.dims2()?;
        x.reshape((tokens, width / self.head_dim, self.head_dim))
    }

    fn turned(
        params: &Params,
        norm: Option<Norm>,
        raw: &Tensor,
        angles: &Angles,
    ) -> Result<Tensor> {
        match norm {
            Some(norm) => rope::forward(&norm.forward(params, raw)?, &angles.cos, &angles.sin),
            None => rope::forward(raw, &angles.cos, &angles.sin),
        }
    }

    fn turned_backward(
        params: &Params,
        norm: Option<Norm>,
        raw: &Option<Tensor>,
        angles: &Angles,
        dy: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let dy = rope::backward(dy, &angles.cos, &angles.sin)?;
        match (norm, raw) {
            (Some(norm), Some(raw)) => norm.backward(params, raw, &dy, gradients),
            _ => Ok(dy),
        }
    }

    /// The output projection before its norm, and what is added to `x`.
    fn project(&self, params: &Params, attended: &Tensor) -> Result<(Tensor, Tensor)> {
        let projected = self.o.forward(params, attended)?;
        let added = match self.post_attention_norm {
            Some(norm) => norm.forward(params, &projected)?,
            None => projected.clone(),
        };
        Ok((projected, added))
    }

    fn feed_forward(&self, params: &Params, middle: &Tensor) -> Result<Fed> {
        let normed = self.feed_forward_norm.forward(params, middle)?;
        let gate = self.gate.forward(params, &normed)?;
        let up = self.up.forward(params, &normed)?;
        let fed = self.down.forward(params, &activation::forward(&gate, &up, self.activation)?)?;
        let y = match self.post_feed_forward_norm {
            Some(norm) => (middle + norm.forward(params, &fed)?)?,
            None => (middle + &fed)?,
        };
        Ok(Fed { gate, up, fed, y })
    }
}

struct Fed {
    gate: Tensor,
    up: Tensor,
    fed: Tensor,
    y: Tensor,
}

impl Block {
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
