//! Attention as a graph of the library's, and the plan by which it is executed.
//!
//! The graph is one operation, with the rules for scores as a graph within it: `y = softmax(rule(q · kᵀ ·
//! scale)) · v`. Documents lie end to end; where each begins is a tensor of its own, `cu_seqlens`.

use candle_core::{Result, bail};

use super::descriptor::{
    Address, DataType, Descriptor, Flag, Handle, HeuristicMode, Kind, Knob, Mode,
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

const F32: DataType = DataType(0);
const I32: DataType = DataType(4);
const BF16: DataType = DataType(9);

/// The numbers of attributes in NVIDIA's `cudnn_graph.h`.
mod attribute {
    pub(super) const POINTWISE_MODE: i32 = 0;
    pub(super) const POINTWISE_PRECISION: i32 = 1;
    pub(super) const HEURISTICS_MODE: i32 = 200;
    pub(super) const HEURISTICS_GRAPH: i32 = 201;
    pub(super) const HEURISTICS_RESULTS: i32 = 202;
    pub(super) const CONFIG_ENGINE: i32 = 300;
    pub(super) const CONFIG_KNOBS: i32 = 302;
    pub(super) const PLAN_HANDLE: i32 = 400;
    pub(super) const PLAN_CONFIG: i32 = 401;
    pub(super) const PLAN_WORKSPACE: i32 = 402;
    pub(super) const KNOB: i32 = 600;
    pub(super) const KNOB_VALUE: i32 = 601;
    pub(super) const OPERATION_POINTWISE: i32 = 750;
    pub(super) const OPERATION_X: i32 = 751;
    pub(super) const OPERATION_B: i32 = 752;
    pub(super) const OPERATION_Y: i32 = 753;
    pub(super) const GRAPH_HANDLE: i32 = 800;
    pub(super) const GRAPH_OPERATIONS: i32 = 801;
    pub(super) const TENSOR_ALIGNMENT: i32 = 900;
    pub(super) const TENSOR_TYPE: i32 = 901;
    pub(super) const TENSOR_DIMENSIONS: i32 = 902;
    pub(super) const TENSOR_STRIDES: i32 = 903;
    pub(super) const TENSOR_NAME: i32 = 906;
    pub(super) const TENSOR_IS_VIRTUAL: i32 = 907;
    pub(super) const TENSOR_IS_ON_HOST: i32 = 908;
    pub(super) const TENSOR_OFFSETS: i32 = 913;
    pub(super) const TENSOR_OFFSET_UNIT: i32 = 914;
    pub(super) const PACK_NAMES: i32 = 1000;
    pub(super) const PACK_ADDRESSES: i32 = 1001;
    pub(super) const PACK_WORKSPACE: i32 = 1003;
    pub(super) const ENGINE_GRAPH: i32 = 1300;
    pub(super) const ENGINE_NUMBER: i32 = 1301;
    pub(super) const MASK_X: i32 = 3000;
    pub(super) const MASK_WINDOW: i32 = 3003;
    pub(super) const MASK_VALUE: i32 = 3005;
    pub(super) const MASK_Y: i32 = 3006;
    pub(super) const MASK_COMPARISON: i32 = 3007;

    #[cfg(test)]
    pub(super) const HEURISTICS_DEVICE: i32 = 204;
    #[cfg(test)]
    pub(super) const PLAN_DEVICE: i32 = 407;
    #[cfg(test)]
    pub(super) const ENGINE_DEVICE: i32 = 1307;
}

#[cfg(test)]
pub(super) const DEVICE_AS_JSON: i32 = 2702;

/// Attributes of the operation itself, which differ between its passes.
struct Numbers {
    kind: Kind,
    tensors: &'static [(i32, Name)],
    /// Of q's and of the keys' documents.
    cu_seqlens: [i32; 2],
    /// The graph of the rules, and which of its tensors are its input and its output.
    rules: [i32; 3],
    /// Of all of q, and of all of the keys.
    most_tokens: Option<[i32; 2]>,
}

const FORWARD: Numbers = Numbers {
    kind: Kind::AttentionForward,
    tensors: &[
        (2800, Name::Q),
        (2801, Name::K),
        (2802, Name::V),
        (2803, Name::Y),
        (2804, Name::LogSumExp),
        (2805, Name::Scale),
    ],
    cu_seqlens: [2820, 2821],
    rules: [2811, 2812, 2813],
    most_tokens: None,
};

const BACKWARD: Numbers = Numbers {
    kind: Kind::AttentionBackward,
    tensors: &[
        (2851, Name::Q),
        (2852, Name::K),
        (2853, Name::V),
        (2854, Name::Y),
        (2855, Name::LogSumExp),
        (2856, Name::Scale),
        (2859, Name::Dq),
        (2860, Name::Dk),
        (2861, Name::Dv),
        (2862, Name::Dy),
    ],
    cu_seqlens: [2870, 2871],
    rules: [2867, 2868, 2869],
    most_tokens: Some([2865, 2866]),
};

/// As [`Mode`]: comparisons of `col` and `row`, and functions of a score.
const AT_LEAST: Mode = Mode(303);
const GREATER: Mode = Mode(302);
const DIVIDE: Mode = Mode(6);
const TANH: Mode = Mode(101);
const MULTIPLY: Mode = Mode(1);

/// What the library would choose.
const CHOSEN: HeuristicMode = HeuristicMode(3);
/// The knob that says in which order the gradients of queries are summed; at 4, in the same one every time
/// (there are such kernels for compute capability 9.0).
const ORDER: Knob = Knob(14);
const ORDERED: i64 = 4;
/// Choices that a configuration has at most.
const MOST_KNOBS: usize = 20;
/// Configurations that are tried at most.
const MOST_CONFIGS: usize = 8;

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
