//! Attention as a graph of the library's, and the plan by which it is executed.
//!
//! The graph is one operation, with the rules for scores as a graph within it: `y = softmax(rule(q · kᵀ ·
//! scale)) · v`. Documents lie end to end; where each begins is a tensor of its own, `cu_seqlens`.

use candle_core::{Result, bail};

use super::attribute;
use super::descriptor::{Address, DataType, Descriptor, Flag, Handle, Kind, Mode};
use super::numbers::{
    AT_LEAST, BACKWARD, BF16, CHOSEN, DIVIDE, F32, FORWARD, GREATER, I32, MOST_CONFIGS, MOST_KNOBS,
    MULTIPLY, ORDER, ORDERED, TANH,
};

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    Forward,
    Backward,
}

/// What a plan is for: `q [N, H, D]`, `k` and `v` `[N, K, D]` in bf16, contiguous.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) pass: Pass,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) dim: usize,
    pub(super) has_window: bool,
    pub(super) has_softcap: bool,
    /// How many documents there are; some may be empty.
    pub(super) documents: usize,
    /// Tokens of a document, at most.
    pub(super) longest: usize,
    /// Tokens of all of them, at most.
    pub(super) tokens: usize,
}

/// A tensor of the graph, by which it is named when the plan is executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i64)]
pub(super) enum Name {
    Q = 1,
    K,
    V,
    Y,
    LogSumExp,
    Dq,
    Dk,
    Dv,
    Dy,
    CuSeqlens,
    // On the host, one number each.
    Scale,
    Softcap,
    Masked,
    Window,
}

/// Where the numbers of the scores' tensors begin, which have no place in memory.
const SCORES: i64 = 100;

/// Whose kernels a plan has.
pub(super) enum Target {
    /// Those of the device that a handle is connected to.
    Handle(Handle),
    /// Those of a device that is described, and need not be there.
    #[cfg(test)]
    Described(Descriptor),
}

/// How the graph of a shape is executed.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) descriptor: Descriptor,
    /// Bytes that it takes while it works.
    pub(super) workspace: usize,
    /// What it was made of; dropped after it.
    _parts: Vec<Descriptor>,
}

/// A graph in the making; what its descriptors refer to lives as long.
struct Builder<'a> {
    shape: &'a Shape,
    target: &'a Target,
    parts: Vec<Descriptor>,
}

impl Builder<'_> {
    fn keep(&mut self, part: Descriptor) -> usize {
        self.parts.push(part);
        self.parts.len() - 1
    }

    fn tensor(
        name: i64,
        kind: DataType,
        dims: [usize; 4],
        strides: [usize; 4],
    ) -> Result<Descriptor> {
        let numbers = |sizes: [usize; 4]| sizes.map(|size| size as i64);
        let alignment = if kind == BF16 { 16i64 } else { 4 };
        Descriptor::new(Kind::Tensor)?
            .with(attribute::TENSOR_NAME, &[name])?
            .with(attribute::TENSOR_TYPE, &[kind])?
            .with(attribute::TENSOR_DIMENSIONS, &numbers(dims))?
            .with(attribute::TENSOR_STRIDES, &numbers(strides))?
            .with(attribute::TENSOR_ALIGNMENT, &[alignment])
    }

    /// One number on the host.
    fn number(&mut self, name: Name, kind: DataType) -> Result<usize> {
        let tensor = Self::tensor(name as i64, kind, [1; 4], [1; 4])?;
        let tensor = tensor.with(attribute::TENSOR_IS_ON_HOST, &[Flag(true)])?;
        Ok(self.keep(tensor.finalized("a number")?))
    }

    /// `[B, heads, S, width]` of documents whose tokens lie end to end.
    fn rows(
        &mut self,
        name: Name,
        kind: DataType,
        [heads, width]: [usize; 2],
        cu_seqlens: usize,
    ) -> Result<usize> {
        let Shape { documents, longest, .. } = *self.shape;
        let row = heads * width;
        let strides = [longest * row, width, row, 1];
        let tensor = Self::tensor(name as i64, kind, [documents, heads, longest, width], strides)?
            .with_descriptors(attribute::TENSOR_OFFSETS, &[&self.parts[cu_seqlens]])?
            .with(attribute::TENSOR_OFFSET_UNIT, &[row as i64])?;
        Ok(self.keep(tensor.finalized("a tensor")?))
    }

    /// Scores, which exist nowhere as a whole.
    fn scores(&mut self, number: i64) -> Result<usize> {
        let Shape { documents, heads, longest, .. } = *self.shape;
        let strides = [heads * longest * longest, longest * longest, longest, 1];
        let tensor =
            Self::tensor(SCORES + number, F32, [documents, heads, longest, longest], strides)?
                .with(attribute::TENSOR_IS_VIRTUAL, &[Flag(true)])?;
        Ok(self.keep(tensor.finalized("scores")?))
    }

    /// `mode` of each score `x`, and of a number where it takes one.
    fn function(&mut self, mode: Mode, x: usize, number: Option<usize>, y: usize) -> Result<usize> {
        let function = Descriptor::new(Kind::Pointwise)?
            .with(attribute::POINTWISE_MODE, &[mode])?
            .with(attribute::POINTWISE_PRECISION, &[F32])?
            .finalized("a function")?;
        let function = self.keep(function);
        let mut operation = Descriptor::new(Kind::PointwiseOperation)?
            .with_descriptors(attribute::OPERATION_POINTWISE, &[&self.parts[function]])?
            .with_descriptors(attribute::OPERATION_X, &[&self.parts[x]])?;
        if let Some(number) = number {
            operation =
                operation.with_descriptors(attribute::OPERATION_B, &[&self.parts[number]])?;
        }
        let operation = operation.with_descriptors(attribute::OPERATION_Y, &[&self.parts[y]])?;
        Ok(self.keep(operation.finalized("a function of scores")?))
    }

    /// Scores `x` where `row` compares so to `col`, or `col + window` to `row`, and no attention elsewhere.
    fn mask(
        &mut self,
        mode: Mode,
        [x, y]: [usize; 2],
        masked: usize,
        window: Option<usize>,
    ) -> Result<usize> {
        let mut operation = Descriptor::new(Kind::DiagonalMask)?
            .with_descriptors(attribute::MASK_X, &[&self.parts[x]])?
            .with_descriptors(attribute::MASK_VALUE, &[&self.parts[masked]])?
            .with_descriptors(attribute::MASK_Y, &[&self.parts[y]])?
            .with(attribute::MASK_COMPARISON, &[mode])?;
        if let Some(window) = window {
            operation =
                operation.with_descriptors(attribute::MASK_WINDOW, &[&self.parts[window]])?;
        }
        Ok(self.keep(operation.finalized("a mask")?))
    }

    /// The graph from scores to what the softmax is of; and how many steps it has.
    fn rules(&mut self) -> Result<(usize, i64)> {
        let mut at = self.scores(0)?;
        let mut operations = Vec::new();
        let mut functions = Vec::new();
        if self.shape.has_softcap {
            let cap = self.number(Name::Softcap, F32)?;
            functions = vec![(DIVIDE, Some(cap)), (TANH, None), (MULTIPLY, Some(cap))];
        }
        for (mode, number) in functions {
            let next = self.scores(operations.len() as i64 + 1)?;
            operations.push(self.function(mode, at, number, next)?);
            at = next;
        }
        let masked = self.number(Name::Masked, F32)?;
        let mut masks = vec![(AT_LEAST, None)];
        if self.shape.has_window {
            masks.push((GREATER, Some(self.number(Name::Window, I32)?)));
        }
        for (mode, window) in masks {
            let next = self.scores(operations.len() as i64 + 1)?;
            operations.push(self.mask(mode, [at, next], masked, window)?);
            at = next;
        }
        let steps = operations.len() as i64;
        Ok((self.graph(&operations)?, steps))
    }

    fn graph(&mut self, operations: &[usize]) -> Result<usize> {
        let operations: Vec<&Descriptor> = operations.iter().map(|at| &self.parts[*at]).collect();
        let graph = Descriptor::new(Kind::Graph)?
            .with_descriptors(attribute::GRAPH_OPERATIONS, &operations)?;
        let graph = match self.target {
            Target::Handle(handle) => graph.with(attribute::GRAPH_HANDLE, &[*handle])?,
            #[cfg(test)]
            Target::Described(_) => graph,
        };
        Ok(self.keep(graph.finalized("a graph")?))
    }

    fn attention(&mut self) -> Result<usize> {
        let Shape { heads, kv_heads, dim, documents, tokens, .. } = *self.shape;
        let numbers = match self.shape.pass {
            Pass::Forward => &FORWARD,
            Pass::Backward => &BACKWARD,
        };
        let boundaries =
            Self::tensor(Name::CuSeqlens as i64, I32, [documents + 1, 1, 1, 1], [1; 4])?;
        let cu_seqlens = self.keep(boundaries.finalized("boundaries")?);
        let mut operation = Descriptor::new(numbers.kind)?;
        for (attribute, name) in numbers.tensors {
            let tensor = match name {
                Name::Scale => self.number(Name::Scale, F32)?,
                Name::LogSumExp => self.rows(*name, F32, [heads, 1], cu_seqlens)?,
                Name::K | Name::V | Name::Dk | Name::Dv => {
                    self.rows(*name, BF16, [kv_heads, dim], cu_seqlens)?
                }
                _ => self.rows(*name, BF16, [heads, dim], cu_seqlens)?,
            };
            operation = operation.with_descriptors(*attribute, &[&self.parts[tensor]])?;
        }
        for attribute in numbers.cu_seqlens {
            operation = operation.with_descriptors(attribute, &[&self.parts[cu_seqlens]])?;
        }
        for attribute in numbers.most_tokens.into_iter().flatten() {
            operation = operation.with(attribute, &[tokens as i64])?;
        }
        let (rules, steps) = self.rules()?;
        let [graph, input, output] = numbers.rules;
        let operation = operation
            .with_descriptors(graph, &[&self.parts[rules]])?
            .with(input, &[SCORES])?
            .with(output, &[SCORES + steps])?;
        Ok(self.keep(operation.finalized("attention")?))
    }

    /// Configurations that the library would take for the graph, the best one first.
    fn configs(&self, graph: usize) -> Result<Vec<Descriptor>> {
        let heuristics = Descriptor::new(Kind::Heuristics)?
            .with_descriptors(attribute::HEURISTICS_GRAPH, &[&self.parts[graph]])?
            .with(attribute::HEURISTICS_MODE, &[CHOSEN])?;
        let heuristics = match self.target {
            Target::Handle(_) => heuristics,
            #[cfg(test)]
            Target::Described(device) => {
                heuristics.with_descriptors(attribute::HEURISTICS_DEVICE, &[device])?
            }
        };
        heuristics.finalized("heuristics")?.descriptors(
            attribute::HEURISTICS_RESULTS,
            Kind::EngineConfig,
            MOST_CONFIGS,
        )
    }

    /// The same configuration, with gradients in the same order every time.
    fn ordered(&mut self, graph: usize, config: &Descriptor) -> Result<Descriptor> {
        let engines = config.descriptors(attribute::CONFIG_ENGINE, Kind::Engine, 1)?;
        let Some(engine) = engines.first() else {
            bail!("cuDNN: a configuration without an engine")
        };
        let engine = Descriptor::new(Kind::Engine)?
            .with_descriptors(attribute::ENGINE_GRAPH, &[&self.parts[graph]])?
            .with(attribute::ENGINE_NUMBER, &[engine.number(attribute::ENGINE_NUMBER)?])?;
        let engine = match self.target {
            Target::Handle(_) => engine,
            #[cfg(test)]
            Target::Described(device) => {
                engine.with_descriptors(attribute::ENGINE_DEVICE, &[device])?
            }
        };
        let engine = self.keep(engine.finalized("an engine")?);
        let mut choices =
            config.descriptors(attribute::CONFIG_KNOBS, Kind::KnobChoice, MOST_KNOBS)?;
        let order = Descriptor::new(Kind::KnobChoice)?
            .with(attribute::KNOB, &[ORDER])?
            .with(attribute::KNOB_VALUE, &[ORDERED])?;
        choices.push(order.finalized("a choice")?);
        let config = Descriptor::new(Kind::EngineConfig)?
            .with_descriptors(attribute::CONFIG_ENGINE, &[&self.parts[engine]])?
            .with_descriptors(attribute::CONFIG_KNOBS, &choices.iter().collect::<Vec<_>>())?
            .finalized("a configuration with ordered sums")?;
        self.parts.extend(choices);
        Ok(config)
    }

    /// The plan of a configuration; its kernels are compiled now.
    fn plan(&self, config: &Descriptor) -> Result<Descriptor> {
        let plan =
            Descriptor::new(Kind::Plan)?.with_descriptors(attribute::PLAN_CONFIG, &[config])?;
        let plan = match self.target {
            Target::Handle(handle) => plan.with(attribute::PLAN_HANDLE, &[*handle])?,
            #[cfg(test)]
            Target::Described(device) => {
                plan.with_descriptors(attribute::PLAN_DEVICE, &[device])?
            }
        };
        plan.finalized("a plan")
    }
}

impl Plan {
    /// The library's plan for the shape; an error where it has none, or for the backward pass none that
    /// gives the same bits twice.
    pub(super) fn new(shape: &Shape, target: &Target) -> Result<Self> {
        let mut builder = Builder { shape, target, parts: vec![] };
        let attention = builder.attention()?;
        let graph = builder.graph(&[attention])?;
        let mut refused = None;
        for config in builder.configs(graph)? {
            let config = match shape.pass {
                Pass::Forward => Ok(config),
                Pass::Backward => builder.ordered(graph, &config),
            };
            let made = config.and_then(|config| Ok((builder.plan(&config)?, config)));
            match made {
                Ok((descriptor, config)) => {
                    let workspace = descriptor.number(attribute::PLAN_WORKSPACE)?.max(0) as usize;
                    builder.keep(config);
                    return Ok(Self { descriptor, workspace, _parts: builder.parts });
                }
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        Err(refused.unwrap_or_else(|| candle_core::Error::msg("cuDNN: nothing does this")))
    }
}

/// Addresses for the names of a plan.
pub(super) fn pack(addresses: &[(Name, Address)], workspace: Address) -> Result<Descriptor> {
    let (names, addresses): (Vec<i64>, Vec<Address>) =
        addresses.iter().map(|(name, address)| (*name as i64, *address)).unzip();
    Descriptor::new(Kind::VariantPack)?
        .with(attribute::PACK_NAMES, &names)?
        .with(attribute::PACK_ADDRESSES, &addresses)?
        .with(attribute::PACK_WORKSPACE, &[workspace])?
        .finalized("addresses")
}
