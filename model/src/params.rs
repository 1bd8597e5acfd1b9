//! The parameters of a model in one list, in an order that never changes, and their gradients in
//! another.

use candle_core::{DType, Result, Tensor};
use chandler_kernels::{accumulation_dtype, linear, memory};

use crate::config::ModelConfig;

/// The place of a parameter in [`Params`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParamId(usize);

/// A named tensor.
#[derive(Debug, Clone)]
pub struct Param {
    /// Its name in safetensors files.
    pub name: String,
    /// The value that the forward pass reads; the optimizer writes into its storage.
    pub value: Tensor,
    /// Gets a gradient.
    pub trainable: bool,
    /// Gets weight decay: everything but biases and norms.
    pub decays: bool,
}

/// Every parameter, tied ones once.
#[derive(Debug, Default)]
pub struct Params {
    list: Vec<Param>,
}

impl Params {
    pub(crate) fn push(&mut self, param: Param) -> ParamId {
        self.list.push(param);
        ParamId(self.list.len() - 1)
    }

    pub(crate) fn value(&self, id: ParamId) -> &Tensor {
        &self.list[id.0].value
    }

    pub(crate) fn get_mut(&mut self, id: ParamId) -> &mut Param {
        &mut self.list[id.0]
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Param> {
        self.list.iter_mut()
    }

    pub(crate) fn truncate(&mut self, len: usize) {
        self.list.truncate(len);
    }

    /// Whether the parameter gets a gradient.
    pub fn trains(&self, id: ParamId) -> bool {
        self.list[id.0].trainable
    }

    /// The parameter at `id`.
    pub fn get(&self, id: ParamId) -> &Param {
        &self.list[id.0]
    }

    /// All parameters in their order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (ParamId, &Param)> {
        self.list.iter().enumerate().map(|(index, param)| (ParamId(index), param))
    }

    /// Those that get gradients, in their order.
    pub fn trainable(&self) -> impl Iterator<Item = (ParamId, &Param)> {
        self.iter().filter(|(_, param)| param.trainable)
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Bytes of all values.
    pub fn bytes(&self) -> usize {
        self.list.iter().map(|p| p.value.elem_count() * p.value.dtype().size_in_bytes()).sum()
    }
}

/// Gradients, added up over micro-batches: in f32 (f64 for an f64 model) or, where asked for, the
/// matrices' in bf16.
#[derive(Debug)]
pub struct Gradients {
    by_param: Vec<Option<Tensor>>,
    matrices: Option<DType>,
}

impl Gradients {
    /// None yet, for the parameters of a model.
    pub fn none(params: &Params) -> Self {
        Self { by_param: vec![None; params.len()], matrices: None }
    }

    /// The same, with the gradients of matrices in `dtype`: half the memory in bf16, and one
    /// rounding for each micro-batch.
    #[must_use]
    pub fn matrices_in(mut self, dtype: DType) -> Self {
        self.matrices = Some(dtype);
        self
    }

    /// Adds to the gradient of a parameter.
    pub fn add(&mut self, id: ParamId, gradient: Tensor) -> Result<()> {
        let slot = &mut self.by_param[id.0];
        *slot = Some(match slot.take() {
            Some(sum) => (sum + gradient)?,
            None => gradient,
        });
        Ok(())
    }

    /// Adds the gradient of a weight `[O, I]` that took `x [N, I]` to a `y` with gradient
    /// `dy [N, O]`.
    pub(crate) fn add_product(&mut self, id: ParamId, x: &Tensor, dy: &Tensor) -> Result<()> {
        let wide = accumulation_dtype(x.dtype());
        let dtype = self.matrices.unwrap_or(wide);
        match &mut self.by_param[id.0] {
            Some(sum) => linear::add_weight_gradient(sum, x, dy),
            slot if dtype == wide => {
                *slot = Some(linear::backward_weight(x, dy)?);
                Ok(())
            }
            slot => {
                let sum = memory::zeros((dy.dim(1)?, x.dim(1)?), dtype, x.device())?;
                linear::add_weight_gradient(&sum, x, dy)?;
                *slot = Some(sum);
                Ok(())
            }
        }
    }

    /// The gradient of a matrix, zero where there is none yet, to be added to in place.
    pub(crate) fn sum_of(&mut self, id: ParamId, of: &Tensor) -> Result<&Tensor> {
        let dtype = self.matrices.unwrap_or(accumulation_dtype(of.dtype()));
        let slot = &mut self.by_param[id.0];
        Ok(match slot {
            Some(sum) => sum,
            None => slot.insert(memory::zeros(of.shape(), dtype, of.device())?),
        })
    }

    /// Takes a gradient out, for good.
    pub fn take(&mut self, id: ParamId) -> Option<Tensor> {
        self.by_param[id.0].take()
    }

    /// The gradient of a parameter, if it has got any.
    pub fn get(&self, id: ParamId) -> Option<&Tensor> {
        self.by_param[id.0].as_ref()
    }

    /// Every gradient there is, in the order of the parameters.
    pub fn iter(&self) -> impl Iterator<Item = (ParamId, &Tensor)> {
        let with_id = |(index, slot): (usize, _)| (ParamId(index), slot);
        self.by_param
            .iter()
            .enumerate()
            .map(with_id)
            .filter_map(|(id, slot)| Some((id, slot.as_ref()?)))
    }

    /// Bytes of all gradients.
    pub fn bytes(&self) -> usize {
        self.iter().map(|(_, g)| g.elem_count() * g.dtype().size_in_bytes()).sum()
    }
}

/// Names and shapes of a model's parameters as its safetensors files have them, in our order.
pub(crate) fn shapes(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let mut all = vec![];
    let mut push = |name: String, shape: &[usize]| all.push((name, shape.to_vec()));
    let (e, f) = (config.hidden_size, config.intermediate_size);
    let (q, kv) = (
        config.num_attention_heads * config.head_dim,
        config.num_key_value_heads * config.head_dim,
    );
    push("model.embed_tokens.weight".to_owned(), &[config.vocab_size, e]);
    for layer in 0..config.layers.len() {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        push(name("input_layernorm.weight"), &[e]);
        for (projection, rows, columns, bias) in [
            ("self_attn.q_proj", q, e, config.qkv_bias),
            ("self_attn.k_proj", kv, e, config.qkv_bias),
            ("self_attn.v_proj", kv, e, config.qkv_bias),
            ("self_attn.o_proj", e, q, config.o_bias),
            ("mlp.gate_proj", f, e, config.mlp_bias),
            ("mlp.up_proj", f, e, config.mlp_bias),
            ("mlp.down_proj", e, f, config.mlp_bias),
        ] {
            push(name(&format!("{projection}.weight")), &[rows, columns]);
            if bias {
                push(name(&format!("{projection}.bias")), &[rows]);
            }
        }
        if config.qk_norm {
            push(name("self_attn.q_norm.weight"), &[config.head_dim]);
            push(name("self_attn.k_norm.weight"), &[config.head_dim]);
        }
        push(name("post_attention_layernorm.weight"), &[e]);
        if config.post_norms {
            push(name("pre_feedforward_layernorm.weight"), &[e]);
            push(name("post_feedforward_layernorm.weight"), &[e]);
        }
    }
    push("model.norm.weight".to_owned(), &[e]);
    if !config.tie_word_embeddings {
        push("lm_head.weight".to_owned(), &[config.vocab_size, e]);
    }
    all
}
