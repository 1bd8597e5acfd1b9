//! One new token a row through the blocks: op by op, or, on a GPU, all at once.
//!
//! A step is some hundred small kernels whose arguments hardly change from token to token. The first
//! step of a number of rows is done op by op; the second is recorded as a CUDA graph, which finds what
//! changes (the embedded tokens, their angles, their places in the cache) in memory of its own and is
//! then launched for every further token. What comes out has the same bits.
#![expect(unsafe_code, reason = "a graph has addresses, and keeps no tensor")]

use std::sync::Once;

use candle_core::{Result, Tensor, TensorId};
use chandler_kernels::decode_attention::Places;
use chandler_kernels::graph::Graph;
use chandler_kernels::{device, memory};

use crate::causal_lm::{BothAngles, CausalLm};
use crate::kv_cache::KvCache;

/// What a step is given.
#[derive(Debug)]
pub(crate) struct DecodeInput {
    /// `[R, E]`
    pub(crate) x: Tensor,
    pub(crate) angles: BothAngles,
    pub(crate) places: Places,
}

/// What a cache knows of the steps that extend it.
#[derive(Debug, Default)]
pub(crate) enum Recorded {
    #[default]
    Nothing,
    /// A step of so many rows has been done, so its kernels are there.
    Done(usize),
    Step(Box<RecordedStep>),
    /// It was tried, and this GPU or this model does not let it be.
    Never,
}

/// A recorded step and what it reads and writes beside weights and cache.
#[derive(Debug)]
pub(crate) struct RecordedStep {
    // First, so that it goes before what it has the addresses of.
    graph: Graph,
    input: DecodeInput,
    y: Tensor,
    weights: Vec<TensorId>,
}

/// A graph's buffers have room for rows that grow to a multiple of so many tokens, and a longer row
/// has the step recorded anew.
const ROOM: usize = 512;

impl CausalLm {
    /// `[R, E]` → `[R, E]`, which is good until the next step.
    pub(crate) fn decode(&self, input: DecodeInput, cache: &mut KvCache) -> Result<Tensor> {
        if !self.device().is_cuda() {
            return self.decode_by_ops(input.x, &input.angles, &input.places, cache);
        }
        let rows = input.places.list().len();
        let known = match std::mem::take(cache.recorded()) {
            Recorded::Step(step) if step.is_for(self, rows) => {
                if step.has_room(&input) {
                    Recorded::Step(step)
                } else {
                    self.record(&input, cache)
                }
            }
            Recorded::Done(before) if before == rows => self.record(&input, cache),
            Recorded::Never => Recorded::Never,
            _ => Recorded::Done(rows),
        };
        let place = cache.recorded();
        *place = known;
        if let Recorded::Step(step) = place {
            // SAFETY: the step is for this model's weights, which are borrowed, and stands in the
            // cache that it was recorded for.
            match unsafe { step.launch(&input) } {
                // Its buffers are taken when it is first launched; one op after the other needs less.
                Err(error) if memory::lacking(&error).is_some() => *place = Recorded::Never,
                done => return done,
            }
        }
        self.decode_by_ops(input.x, &input.angles, &input.places, cache)
    }

    fn decode_by_ops(
        &self,
        mut x: Tensor,
        angles: &BothAngles,
        places: &Places,
        cache: &mut KvCache,
    ) -> Result<Tensor> {
        let params = self.params();
        let Some(first) = self.blocks.first() else { return Ok(x) };
        let mut normed = first.input_norm.forward(params, &x)?;
        for (index, block) in self.blocks.iter().enumerate() {
            let (layer, angles) = (cache.layer_mut(index), angles.of(block));
            let [middle, fed] = block.decode(params, [&x, &normed], angles, places, layer)?;
            match self.blocks.get(index + 1) {
                Some(next) => {
                    let next = next.input_norm;
                    [x, normed] = block.output_and_normed(params, &middle, &fed, next)?;
                }
                None => x = block.output(params, &middle, &fed)?,
            }
        }
        Ok(x)
    }

    fn record(&self, input: &DecodeInput, cache: &mut KvCache) -> Recorded {
        static TOLD: Once = Once::new();
        let mut recorded = RecordedStep::new(self, input, cache);
        if recorded.as_ref().is_err_and(|error| memory::lacking(error).is_some()) {
            // What the pool keeps for nobody may be what it lacks.
            let emptied = device::give_back(self.device());
            recorded = emptied.and_then(|()| RecordedStep::new(self, input, cache));
        }
        match recorded {
            Ok(Some(step)) => Recorded::Step(Box::new(step)),
            Ok(None) => Recorded::Never,
            Err(error) => {
                TOLD.call_once(|| {
                    tracing::warn!(%error, "tokens are generated op by op, which is slower: the GPU records no step");
                });
                Recorded::Never
            }
        }
    }
}

impl RecordedStep {
    /// A step of so many rows as `input` has, not done yet; `None` where there are no graphs.
    fn new(model: &CausalLm, input: &DecodeInput, cache: &mut KvCache) -> Result<Option<Self>> {
        let room = input.places.reach().next_multiple_of(ROOM).min(cache.capacity());
        let places = Places::new(input.places.list().to_vec(), model.device())?.with_room(room);
        let input = DecodeInput { x: input.x.copy()?, angles: input.angles.copy()?, places };
        let y = memory::zeros(input.x.shape(), input.x.dtype(), model.device())?;
        // What copies is loaded by its first use, which must not be within a recording.
        y.slice_set(&input.x, 0, 0)?;
        let graph = Graph::record(model.device(), || {
            let x = input.x.clone();
            y.slice_set(&model.decode_by_ops(x, &input.angles, &input.places, cache)?, 0, 0)
        })?;
        let weights = weights(model).collect();
        Ok(graph.map(|graph| Self { graph, input, y, weights }))
    }

    /// Whether so many rows of this model are what was recorded.
    fn is_for(&self, model: &CausalLm, rows: usize) -> bool {
        self.input.places.list().len() == rows && weights(model).eq(self.weights.iter().copied())
    }

    fn has_room(&self, input: &DecodeInput) -> bool {
        input.places.reach() <= self.input.places.reach()
    }

    /// # Safety
    /// The weights of the model and the cache are those that the step was recorded with.
    unsafe fn launch(&mut self, input: &DecodeInput) -> Result<Tensor> {
        self.input.x.slice_set(&input.x, 0, 0)?;
        self.input.angles.copy_from(&input.angles)?;
        self.input.places.move_to(&input.places)?;
        // SAFETY: weights and cache by the caller's promise; all else is held here.
        unsafe { self.graph.launch() }?;
        Ok(self.y.clone())
    }
}

/// What tells the tensors of the weights from all others, which may lie where these have lain.
fn weights(model: &CausalLm) -> impl Iterator<Item = TensorId> {
    model.params().iter().map(|(_, param)| param.value.id())
}
