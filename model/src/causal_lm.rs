//! The model as a chain: embedding, blocks, final norm and head with the loss.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use chandler_kernels::linear_cross_entropy::{self, Pending, Score};
use chandler_kernels::{accumulation_dtype, attention, embedding, gemv, rms_norm};

use crate::block::{BackwardPass, Block, SavedBlock};
use crate::config::{Attended, ModelConfig};
use crate::layout::SequenceLayout;
use crate::linear::Linear;
use crate::lora::LoraConfig;
use crate::norm::Norm;
use crate::params::{Gradients, Param, ParamId, Params};
use crate::rope::{self, Angles};
use crate::weights::WeightFiles;
use crate::{ModelError, init};

/// A causal language model: its configuration, its parameters, and what is computed with them.
///
/// Training goes by the chain's links (`embed`, `block_forward`, `loss_backward`,
/// `block_backward`, `embed_backward`), so that whoever trains decides what is kept between them.
#[derive(Debug)]
pub struct CausalLm {
    pub(crate) config: ModelConfig,
    pub(crate) params: Params,
    pub(crate) blocks: Vec<Block>,
    pub(crate) lora: Option<LoraConfig>,
    /// Parameters of the base model; those of an adapter follow.
    pub(crate) num_base_params: usize,
    embedding: ParamId,
    final_norm: Norm,
    head: ParamId,
    dtype: DType,
    device: Device,
}

/// A micro-batch on its device: token ids, where documents begin, and the angles of positions.
#[derive(Debug)]
pub struct Input {
    ids: Tensor,
    layout: SequenceLayout,
    angles: BothAngles,
}

#[derive(Debug)]
pub(crate) struct BothAngles {
    full: Angles,
    sliding: Option<Angles>,
}

impl CausalLm {
    /// Reads a Hugging Face model folder; weights are converted to `dtype`, or stay in the type
    /// they are stored in.
    pub fn load(folder: &Path, dtype: Option<DType>, device: &Device) -> Result<Self, ModelError> {
        Self::load_telling(folder, dtype, device, &|_, _| {})
    }

    /// As [`load`](Self::load); `tell` hears after each tensor how many bytes are in memory, and of
    /// how many.
    pub fn load_telling(
        folder: &Path,
        dtype: Option<DType>,
        device: &Device,
        tell: &dyn Fn(u64, u64),
    ) -> Result<Self, ModelError> {
        let config = ModelConfig::read(folder)?;
        let files = WeightFiles::open(folder)?;
        let dtype = dtype.or(files.stored_dtype()).unwrap_or(DType::F32);
        let shapes = crate::params::shapes(&config);
        let known: std::collections::BTreeSet<&str> =
            shapes.iter().map(|(name, _)| name.as_str()).collect();
        let tied_head = config.tie_word_embeddings.then_some("lm_head.weight");
        let strays = files.names().filter(|name| !known.contains(name));
        let strays = strays
            .filter(|name| Some(*name) != tied_head && !name.ends_with("rotary_emb.inv_freq"));
        let (first, count) =
            strays.fold((None, 0), |(first, count), stray| (first.or(Some(stray)), count + 1));
        if let Some(first) = first {
            tracing::warn!(tensor = first, "{count} tensors of the model folder are not used");
        }
        let bytes =
            |shape: &[usize]| (shape.iter().product::<usize>() * dtype.size_in_bytes()) as u64;
        let total = shapes.iter().map(|(_, shape)| bytes(shape)).sum();
        let mut done = 0;
        let mut tensors = Vec::with_capacity(shapes.len());
        for (name, shape) in &shapes {
            tensors.push((name.clone(), files.read(name, shape, dtype, device)?));
            done += bytes(shape);
            tell(done, total);
        }
        Ok(Self::build(config, tensors, dtype, device))
    }

    /// A model with fresh weights; the same seed gives the same bits.
    pub fn fresh(
        config: ModelConfig,
        seed: u64,
        dtype: DType,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let tensors = init::fresh(&config, seed, dtype, device)?;
        Ok(Self::build(config, tensors, dtype, device))
    }

    /// A model of this shape without weights: for plans, not for computing. It takes no memory,
    /// whatever its size.
    pub fn hollow(config: ModelConfig, dtype: DType, device: &Device) -> Result<Self, ModelError> {
        let tensors = init::hollow(&config, dtype, device)?;
        Ok(Self::build(config, tensors, dtype, device))
    }

    /// `tensors` are those of [`crate::params::shapes`], in that order.
    fn build(
        config: ModelConfig,
        tensors: Vec<(String, Tensor)>,
        dtype: DType,
        device: &Device,
    ) -> Self {
        let mut params = Params::default();
        let mut by_name = std::collections::BTreeMap::new();
        for (name, value) in tensors {
            let decays = value.rank() == 2;
            let param = Param { name: name.clone(), value, trainable: true, decays };
            by_name.insert(name, params.push(param));
        }
        let find = |name: &str| by_name.get(name).copied();
        let blocks = (0..config.layers.len()).map(|layer| block(&config, layer, &find)).collect();
        let embedding = find("model.embed_tokens.weight").expect("in the list of shapes");
        let final_norm = norm(&config, find("model.norm.weight").expect("in the list of shapes"));
        let head = find("lm_head.weight").unwrap_or(embedding);
        let num_base_params = params.len();
        let device = device.clone();
        let lora = None;
        Self {
            config,
            params,
            blocks,
            lora,
            num_base_params,
            embedding,
            final_norm,
            head,
            dtype,
            device,
        }
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// All parameters, those of an adapter last.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The type that weights and activations have.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where the weights are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The adapter's settings, where there is one.
    pub fn lora(&self) -> Option<&LoraConfig> {
        self.lora.as_ref()
    }

    /// Blocks of the chain.
    pub fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Makes a micro-batch of `input_ids`, one for each token of `layout`.
    pub fn input(&self, input_ids: &[u32], layout: SequenceLayout) -> Result<Input, ModelError> {
        if input_ids.len() != layout.num_tokens() {
            let (ids, tokens) = (input_ids.len(), layout.num_tokens());
            return Err(candle_core::Error::Msg(format!("{ids} ids for {tokens} tokens")).into());
        }
        let angles = self.angles(layout.positions())?;
        Ok(Input { ids: self.ids(input_ids)?, layout, angles })
    }

    /// `[N]` ids → `[N, E]`.
    pub fn embed(&self, input: &Input) -> Result<Tensor, ModelError> {
        self.embed_ids(&input.ids)
    }

    /// Adds the embedding's gradient, where it is trained: `dx [N, E]`.
    pub fn embed_backward(
        &self,
        input: &Input,
        dx: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<(), ModelError> {
        if !self.params.trains(self.embedding) {
            return Ok(());
        }
        let table = self.params.value(self.embedding);
        let sum = gradients.sum_of(self.embedding, table)?;
        let scale = self.config.embedding_scale;
        Ok(embedding::add_gradient(sum, &input.ids, scale, dx, self.config.padding_idx)?)
    }

    /// Block `index` over `x [N, E]`.
    pub fn block_forward(
        &self,
        index: usize,
        x: &Tensor,
        input: &Input,
    ) -> Result<(Tensor, SavedBlock), ModelError> {
        let block = &self.blocks[index];
        let angles = input.angles.of(block);
        Ok(block.forward(&self.params, x, angles, input.layout.cu_seqlens())?)
    }

    /// What [`block_forward`](Self::block_forward) saves, in less work: without the output.
    pub fn block_again(
        &self,
        index: usize,
        x: &Tensor,
        input: &Input,
    ) -> Result<SavedBlock, ModelError> {
        let block = &self.blocks[index];
        let angles = input.angles.of(block);
        Ok(block.saved(&self.params, x, angles, input.layout.cu_seqlens())?)
    }

    /// Adds the gradients of block `index` and returns that of its input, which is `None` where
    /// nothing below the block is trained.
    pub fn block_backward(
        &self,
        index: usize,
        saved: SavedBlock,
        input: &Input,
        dy: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<Option<Tensor>, ModelError> {
        let block = &self.blocks[index];
        let mut pass = BackwardPass {
            params: &self.params,
            angles: input.angles.of(block),
            cu_seqlens: input.layout.cu_seqlens(),
            gradients,
        };
        Ok(block.backward(&mut pass, saved, dy, self.trains_below(index))?)
    }

    /// Whether the embedding or a block before block `index` has something to train.
    fn trains_below(&self, index: usize) -> bool {
        let trains = |id: ParamId| self.params.trains(id);
        trains(self.embedding)
            || (0..index).any(|below| self.block_params(below).into_iter().any(trains))
    }

    /// The parameters of block `index`, those of its adapters included. Their gradients are
    /// complete when the block's backward pass is done.
    pub fn block_params(&self, index: usize) -> Vec<ParamId> {
        self.blocks[index].params()
    }

    /// Those of block `index` up to the output projection of its attention, norms included.
    pub fn attention_params(&self, index: usize) -> Vec<ParamId> {
        self.blocks[index].attention_params()
    }

    /// The other ones of block `index`.
    pub fn feed_forward_params(&self, index: usize) -> Vec<ParamId> {
        self.blocks[index].feed_forward_params()
    }

    /// The largest rank of the adapter's matrices; 0 without one.
    pub fn adapter_rank(&self) -> usize {
        let linears = self.blocks.iter().flat_map(Block::linears);
        let adapters = linears.filter_map(|(_, linear)| linear.adapter);
        adapters.map(|adapter| self.params.value(adapter.a).dims()[0]).max().unwrap_or(0)
    }

    /// The parameters whose gradients are complete after [`loss_backward`](Self::loss_backward):
    /// the final norm, and the head unless it is the embedding.
    pub fn params_of_loss_alone(&self) -> Vec<ParamId> {
        let head = (self.head != self.embedding).then_some(self.head);
        head.into_iter().chain([self.final_norm.weight]).collect()
    }

    /// The embedding, whose gradient is complete last.
    pub fn embedding_param(&self) -> ParamId {
        self.embedding
    }

    pub(crate) fn head_param(&self) -> ParamId {
        self.head
    }

    pub(crate) fn final_norm_param(&self) -> ParamId {
        self.final_norm.weight
    }

    /// Bytes that block `index` keeps for its backward pass over `tokens` tokens, its input
    /// included.
    pub fn saved_block_bytes(&self, index: usize, tokens: usize) -> usize {
        let block = &self.blocks[index];
        let config = &self.config;
        let heads = config.num_attention_heads * config.head_dim;
        let kv_heads = config.num_key_value_heads * config.head_dim;
        let normed = [block.post_attention_norm, block.post_feed_forward_norm];
        let width = (2 + normed.iter().flatten().count()) * config.hidden_size
            + 2 * heads
            + 2 * kv_heads
            + 2 * config.intermediate_size;
        tokens * width * self.dtype.size_in_bytes()
    }

    /// Bytes of a block's input over `tokens` tokens.
    pub fn boundary_bytes(&self, tokens: usize) -> usize {
        tokens * self.config.hidden_size * self.dtype.size_in_bytes()
    }

    /// Final norm, head and loss over the last block's output `x [N, E]`; `targets` are N ids or
    /// −100.
    pub fn loss(&self, x: &Tensor, targets: &[i64]) -> Result<Score, ModelError> {
        let hidden = self.final_norm.forward(&self.params, x)?;
        let softcap = self.config.final_logit_softcap;
        Ok(linear_cross_entropy::forward(&hidden, self.params.value(self.head), targets, softcap)?)
    }

    /// The same with gradients of `loss_sum · loss_scale`; returns that of `x`. A GPU is not waited for:
    /// its score is on its way.
    pub fn loss_backward(
        &self,
        x: &Tensor,
        targets: &[i64],
        loss_scale: f64,
        gradients: &mut Gradients,
    ) -> Result<(Pending, Tensor), ModelError> {
        let hidden = self.final_norm.forward(&self.params, x)?;
        let head = self.params.value(self.head);
        let trains = self.params.trains(self.head);
        let d_head = if trains { Some(gradients.sum_of(self.head, head)?) } else { None };
        let softcap = self.config.final_logit_softcap;
        let (score, d_hidden) = linear_cross_entropy::begin_forward_backward(
            &hidden, head, targets, softcap, loss_scale, d_head,
        )?;
        Ok((score, self.final_norm.backward(&self.params, x, &d_hidden, gradients)?))
    }

    /// Log-probability of each target, in nats; 0 where it is −100.
    pub fn log_probs(&self, x: &Tensor, targets: &[i64]) -> Result<Vec<f64>, ModelError> {
        let hidden = self.final_norm.forward(&self.params, x)?;
        let (head, softcap) = (self.params.value(self.head), self.config.final_logit_softcap);
        Ok(linear_cross_entropy::log_probs(&hidden, head, targets, softcap)?)
    }

    /// The last block's output over a whole micro-batch, `[N, E]`, nothing saved.
    pub fn forward(&self, input: &Input) -> Result<Tensor, ModelError> {
        let mut x = self.embed(input)?;
        for index in 0..self.num_blocks() {
            x = self.block_forward(index, &x, input)?.0;
        }
        Ok(x)
    }

    /// Logits of the last block's output `x [N, E]`: `[N, V]`, f32 (f64 for an f64 model).
    pub fn logits(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let hidden = self.final_norm.forward(&self.params, x)?;
        let logits = gemv::forward_wide(&hidden, self.params.value(self.head))?;
        Ok(match self.config.final_logit_softcap {
            Some(cap) => ((logits / cap)?.tanh()? * cap)?,
            None => logits,
        })
    }

    pub(crate) fn ids(&self, ids: &[u32]) -> Result<Tensor, ModelError> {
        let vocab_size = self.config.vocab_size;
        if let Some(id) = ids.iter().copied().find(|id| *id as usize >= vocab_size) {
            return Err(ModelError::TokenOutOfVocabulary { id, vocab_size });
        }
        // On the CPU wherever the model is: the embedding sorts them.
        Ok(Tensor::from_slice(ids, ids.len(), &Device::Cpu)?)
    }

    pub(crate) fn embed_ids(&self, ids: &Tensor) -> Result<Tensor, ModelError> {
        let table = self.params.value(self.embedding);
        Ok(embedding::forward(table, ids, self.config.embedding_scale)?)
    }

    pub(crate) fn angles(&self, positions: &[u32]) -> Result<BothAngles, ModelError> {
        let (head_dim, dtype) = (self.config.head_dim, accumulation_dtype(self.dtype));
        let of = |rope| rope::angles(rope, head_dim, positions, dtype, &self.device);
        let sliding = self.config.sliding_rope.as_ref().map(of).transpose()?;
        Ok(BothAngles { full: of(&self.config.rope)?, sliding })
    }
}

impl BothAngles {
    fn each(&self) -> impl Iterator<Item = &Tensor> {
        let angles = std::iter::once(&self.full).chain(&self.sliding);
        angles.flat_map(|angles| [&angles.cos, &angles.sin])
    }

    /// The same in memory of its own.
    pub(crate) fn copy(&self) -> candle_core::Result<Self> {
        let of = |angles: &Angles| -> candle_core::Result<_> {
            Ok(Angles { cos: angles.cos.copy()?, sin: angles.sin.copy()? })
        };
        Ok(Self { full: of(&self.full)?, sliding: self.sliding.as_ref().map(of).transpose()? })
    }

    /// Takes on the values of others, of as many tokens.
    pub(crate) fn copy_from(&self, others: &Self) -> candle_core::Result<()> {
        self.each().zip(others.each()).try_for_each(|(own, new)| own.slice_set(new, 0, 0))
    }

    pub(crate) fn of(&self, block: &Block) -> &Angles {
        self.sliding.as_ref().filter(|_| block.sliding_rope).unwrap_or(&self.full)
    }
}

impl Input {
    /// Where documents begin.
    pub fn layout(&self) -> &SequenceLayout {
        &self.layout
    }
}

fn norm(config: &ModelConfig, weight: ParamId) -> Norm {
    let params =
        rms_norm::Params { eps: config.rms_norm_eps, unit_offset: config.unit_offset_norm };
    Norm { weight, params }
}

fn block(config: &ModelConfig, layer: usize, find: &dyn Fn(&str) -> Option<ParamId>) -> Block {
    let id = |part: &str| find(&format!("model.layers.{layer}.{part}"));
    let linear = |part: &str| Linear {
        weight: id(&format!("{part}.weight")).expect("in the list of shapes"),
        bias: id(&format!("{part}.bias")),
        adapter: None,
    };
    let norm_at = |part: &str| id(&format!("{part}.weight")).map(|weight| norm(config, weight));
    let after_attention = norm_at("post_attention_layernorm");
    let (post_attention_norm, feed_forward_norm) = if config.post_norms {
        (after_attention, norm_at("pre_feedforward_layernorm"))
    } else {
        (None, after_attention)
    };
    let attended = config.layers[layer].attended;
    Block {
        input_norm: norm_at("input_layernorm").expect("in the list of shapes"),
        q: linear("self_attn.q_proj"),
        k: linear("self_attn.k_proj"),
        v: linear("self_attn.v_proj"),
        o: linear("self_attn.o_proj"),
        q_norm: norm_at("self_attn.q_norm"),
        k_norm: norm_at("self_attn.k_norm"),
        post_attention_norm,
        feed_forward_norm: feed_forward_norm.expect("in the list of shapes"),
        gate: linear("mlp.gate_proj"),
        up: linear("mlp.up_proj"),
        down: linear("mlp.down_proj"),
        post_feed_forward_norm: norm_at("post_feedforward_layernorm"),
        activation: config.activation,
        attention: attention::Params {
            scale: config.attention_scale,
            softcap: config.attention_softcap,
            window: attended.window(),
        },
        head_dim: config.head_dim,
        sliding_rope: matches!(attended, Attended::Sliding(_)),
    }
}
