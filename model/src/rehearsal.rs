//! Which scratch buffers a pass over the model needs: its ops asked one by one, nothing computed.

use candle_core::DType;
use chandler_kernels::attention::HeadShape;
use chandler_kernels::rehearsal::Rehearsal;
use chandler_kernels::{attention, decode_attention, linear, linear_cross_entropy, rms_norm};

use crate::CausalLm;
use crate::block::Block;
use crate::cached::PREFILL_TOKENS;
use crate::linear::Linear;
use crate::params::Params;

/// What the ops of a block are asked with.
struct Stage<'a> {
    params: &'a Params,
    block: &'a Block,
    pool: &'a mut Rehearsal,
    heads: HeadShape,
    tokens: usize,
    hidden: usize,
    dtype: DType,
    /// Of the weights' gradients.
    gradient: DType,
}

impl CausalLm {
    /// The buffers of a forward and a backward pass over documents of these lengths, laid end to
    /// end, with gradients of the weights in `gradient`.
    pub fn rehearse_step(&self, pool: &mut Rehearsal, documents: &[usize], gradient: DType) {
        let kinds = self.kinds_of_blocks();
        for block in &kinds {
            self.stage(block, pool, documents.iter().sum()).forward(documents);
        }
        let size = self.loss_size(documents.iter().sum());
        let trains = |id| self.params.trains(id);
        rms_norm::rehearse_forward(pool, [size[0], size[2]]);
        linear_cross_entropy::rehearse_forward_backward(
            pool,
            size,
            self.dtype(),
            trains(self.head_param()),
        );
        rms_norm::rehearse_backward(pool, [size[0], size[2]], trains(self.final_norm_param()));
        for block in kinds.iter().rev() {
            let mut stage = self.stage(block, pool, documents.iter().sum());
            stage.gradient = gradient;
            stage.forward(documents);
            stage.backward(documents);
        }
    }

    /// The buffers of the loss without gradients over such documents.
    pub fn rehearse_loss(&self, pool: &mut Rehearsal, documents: &[usize]) {
        for block in self.kinds_of_blocks() {
            self.stage(block, pool, documents.iter().sum()).forward(documents);
        }
        linear_cross_entropy::rehearse_forward(
            pool,
            self.loss_size(documents.iter().sum()),
            self.dtype(),
        );
    }

    /// The buffers of `batch` answers of `new_tokens` tokens to prompts of `prompt` tokens.
    pub fn rehearse_answers(
        &self,
        pool: &mut Rehearsal,
        batch: usize,
        [prompt, new_tokens]: [usize; 2],
    ) {
        for block in self.kinds_of_blocks() {
            for past in (0..prompt).step_by(PREFILL_TOKENS) {
                let queries = PREFILL_TOKENS.min(prompt - past);
                let together = (PREFILL_TOKENS / queries).clamp(1, batch.max(1));
                let mut stage = self.stage(block, pool, queries * together);
                stage.projections();
                stage.attention_from([past, queries]);
                stage.rest();
            }
            let lens = vec![prompt + new_tokens; batch];
            let heads = self.head_shape();
            decode_attention::rehearse(pool, heads, &lens, block.attention.window);
        }
    }

    /// `[tokens, vocabulary, hidden]`
    fn loss_size(&self, tokens: usize) -> [usize; 3] {
        [tokens, self.config().vocab_size, self.config().hidden_size]
    }

    fn head_shape(&self) -> HeadShape {
        let c = self.config();
        [c.num_attention_heads, c.num_key_value_heads, c.head_dim]
    }

    /// One block of each window: the others ask for the same buffers again.
    fn kinds_of_blocks(&self) -> Vec<&Block> {
        let mut kinds: Vec<&Block> = vec![];
        for block in &self.blocks {
            if kinds.iter().all(|kind| kind.attention != block.attention) {
                kinds.push(block);
            }
        }
        kinds
    }

    fn stage<'a>(&'a self, block: &'a Block, pool: &'a mut Rehearsal, tokens: usize) -> Stage<'a> {
        Stage {
            params: &self.params,
            block,
            pool,
            heads: self.head_shape(),
            tokens,
            hidden: self.config().hidden_size,
            dtype: self.dtype(),
            gradient: DType::F32,
        }
    }
}

impl Stage<'_> {
    fn forward(&mut self, documents: &[usize]) {
        self.projections();
        let params = self.block.attention;
        attention::rehearse_forward(self.pool, self.heads, documents, params, self.dtype);
        self.rest();
    }

    fn attention_from(&mut self, place: [usize; 2]) {
        let params = self.block.attention;
        attention::rehearse_forward_from(self.pool, self.heads, place, params, self.dtype);
    }

    /// Up to queries, keys and values.
    fn projections(&mut self) {
        let block = self.block;
        self.norm();
        for linear in [&block.q, &block.k, &block.v] {
            self.product(linear);
        }
    }

    /// From the attention's output on.
    fn rest(&mut self) {
        let block = self.block;
        self.product(&block.o);
        self.norm();
        for linear in [&block.gate, &block.up, &block.down] {
            self.product(linear);
        }
    }

    fn backward(&mut self, documents: &[usize]) {
        let block = self.block;
        self.gradients(&block.down);
        self.norm();
        self.gradients(&block.gate);
        self.gradients(&block.up);
        self.norm_gradient();
        self.gradients(&block.o);
        let params = block.attention;
        attention::rehearse_backward(self.pool, self.heads, documents, params, self.dtype);
        self.head_norm_gradients();
        self.norm();
        for linear in [&block.q, &block.k, &block.v] {
            self.gradients(linear);
        }
        self.norm_gradient();
    }

    fn norm(&mut self) {
        rms_norm::rehearse_forward(self.pool, [self.tokens, self.hidden]);
    }

    fn norm_gradient(&mut self) {
        let trains = self.params.trains(self.block.input_norm.weight);
        rms_norm::rehearse_backward(self.pool, [self.tokens, self.hidden], trains);
    }

    fn head_norm_gradients(&mut self) {
        let [query, kv, dim] = self.heads;
        for (norm, heads) in [(self.block.q_norm, query), (self.block.k_norm, kv)] {
            if let Some(norm) = norm {
                let trains = self.params.trains(norm.weight);
                rms_norm::rehearse_backward(self.pool, [self.tokens * heads, dim], trains);
            }
        }
    }

    fn product(&mut self, layer: &Linear) {
        let [outputs, inputs] = self.shape(layer);
        self.multiply([self.tokens, outputs, inputs]);
        if let Some(r) = self.rank(layer) {
            self.multiply([self.tokens, r, inputs]);
            self.multiply([self.tokens, outputs, r]);
        }
    }

    fn gradients(&mut self, layer: &Linear) {
        let ([outputs, inputs], tokens) = (self.shape(layer), self.tokens);
        self.multiply([tokens, inputs, outputs]);
        if self.params.trains(layer.weight) {
            self.sum_over_tokens([outputs, inputs]);
        }
        if let Some(r) = self.rank(layer) {
            self.multiply([tokens, r, outputs]);
            self.multiply([tokens, inputs, r]);
            self.multiply([tokens, r, inputs]);
            self.sum_over_tokens([outputs, r]);
            self.sum_over_tokens([r, inputs]);
        }
    }

    fn multiply(&mut self, size: [usize; 3]) {
        linear::rehearse(self.pool, size, self.dtype);
    }

    /// The gradient of a weight `[O, I]`.
    fn sum_over_tokens(&mut self, [outputs, inputs]: [usize; 2]) {
        let size = [outputs, inputs, self.tokens];
        linear::rehearse_weight_gradient(self.pool, size, self.dtype, self.gradient);
    }

    /// `[O, I]`
    fn shape(&self, layer: &Linear) -> [usize; 2] {
        let dims = self.params.value(layer.weight).dims();
        [dims[0], dims[1]]
    }

    fn rank(&self, layer: &Linear) -> Option<usize> {
        layer.adapter.map(|adapter| self.params.value(adapter.a).dims()[0])
    }
}
