//! Where the time goes, by op.
//!
//! Off until [`enable`] is called; until then a public op pays one relaxed load. An op that is
//! called by another op counts as part of that one, so the times of a thread that computes add up
//! to no more than the time that passed.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use chandler_kernels::profile::{self, Op};
//!
//! # fn main() -> candle_core::Result<()> {
//! let x = Tensor::ones((4, 8), DType::F32, &Device::Cpu)?;
//! let weight = Tensor::ones((16, 8), DType::F32, &Device::Cpu)?;
//! profile::enable(true);
//! chandler_kernels::linear::forward(&x, &weight, None)?;
//! profile::enable(false);
//! let rows = profile::take();
//! assert_eq!((rows[0].op, rows[0].calls), (Op::LinearForward, 1));
//! assert_eq!(rows[0].flops, 2 * 4 * 8 * 16);
//! assert!(profile::take().is_empty());
//! # Ok(())
//! # }
//! ```

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use candle_core::Tensor;

/// What an op is counted as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Op {
    /// `x·Wᵀ`.
    LinearForward,
    /// `dy·W`.
    LinearBackwardInput,
    /// `dyᵀ·x`.
    LinearBackwardWeight,
    /// Attention.
    AttentionForward,
    /// Its gradients.
    AttentionBackward,
    /// RMS norm, both ways.
    RmsNorm,
    /// Rotary embedding, both ways.
    Rope,
    /// The gated activation, both ways.
    Gated,
    /// Looking tokens up, both ways.
    Embedding,
    /// Head and cross entropy, both ways.
    Loss,
    /// Clipping and AdamW.
    Optimizer,
    /// Anything else.
    Other,
}

impl Op {
    /// Every op, in the order of their rows.
    pub const ALL: [Op; 12] = [
        Self::LinearForward,
        Self::LinearBackwardInput,
        Self::LinearBackwardWeight,
        Self::AttentionForward,
        Self::AttentionBackward,
        Self::RmsNorm,
        Self::Rope,
        Self::Gated,
        Self::Embedding,
        Self::Loss,
        Self::Optimizer,
        Self::Other,
    ];

    /// Its name in tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::LinearForward => "linear_forward",
            Self::LinearBackwardInput => "linear_backward_input",
            Self::LinearBackwardWeight => "linear_backward_weight",
            Self::AttentionForward => "attention_forward",
            Self::AttentionBackward => "attention_backward",
            Self::RmsNorm => "rms_norm",
            Self::Rope => "rope",
            Self::Gated => "gated",
            Self::Embedding => "embedding",
            Self::Loss => "loss",
            Self::Optimizer => "optimizer",
            Self::Other => "other",
        }
    }
}

/// What was counted of one op since the last [`take`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Which.
    pub op: Op,
    /// How often it ran.
    pub calls: u64,
    /// How long, in all.
    pub nanoseconds: u64,
    /// Floating-point operations of all calls, a multiplication and its addition as two.
    pub flops: u64,
    /// Bytes that all calls had to read and write, each input and output once.
    pub bytes: u64,
}

struct Counters {
    calls: AtomicU64,
    nanoseconds: AtomicU64,
    flops: AtomicU64,
    bytes: AtomicU64,
}

static ENABLED: AtomicBool = AtomicBool::new(false);
static COUNTERS: [Counters; Op::ALL.len()] = [const {
    Counters {
        calls: AtomicU64::new(0),
        nanoseconds: AtomicU64::new(0),
        flops: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
    }
}; Op::ALL.len()];

thread_local! {
    /// Whether this thread is within an op that is timed.
    static WITHIN: Cell<bool> = const { Cell::new(false) };
}

/// Switches the counting on or off. What has been counted stays until [`take`].
pub fn enable(on: bool) {
    ENABLED.store(on, Ordering::Relaxed);
}

/// Whether ops are counted.
pub fn is_enabled() -> bool {
    ENABLED.load(Ordering::Relaxed)
}

/// A row for each op that ran, in the order of [`Op::ALL`]; the counters begin again at 0.
pub fn take() -> Vec<Row> {
    let row = |(op, counters): (Op, &Counters)| {
        let take = |counter: &AtomicU64| counter.swap(0, Ordering::Relaxed);
        Row {
            op,
            calls: take(&counters.calls),
            nanoseconds: take(&counters.nanoseconds),
            flops: take(&counters.flops),
            bytes: take(&counters.bytes),
        }
    };
    Op::ALL.into_iter().zip(&COUNTERS).map(row).filter(|row| row.calls > 0).collect()
}

/// Counts one call of `op`, from now until the guard is dropped: the first line of a public op.
/// `flops` are those of the whole call.
#[inline]
pub fn time(op: Op, flops: usize) -> Timer {
    let running = is_enabled().then(|| Running::begin(op, flops)).flatten();
    Timer { running, on_its_thread: PhantomData }
}

/// The same, of an op that reads or writes these tensors, each once.
#[inline]
pub(crate) fn over(op: Op, flops: usize, tensors: &[&Tensor]) -> Timer {
    if !is_enabled() {
        return time(op, flops);
    }
    let bytes = tensors.iter().map(|t| t.elem_count() * t.dtype().size_in_bytes()).sum();
    time(op, flops).moving(bytes)
}

/// One call of an op that is going on.
#[derive(Debug)]
#[must_use = "the time is counted until this is dropped"]
pub struct Timer {
    running: Option<Running>,
    /// What it is within is known of its own thread alone.
    on_its_thread: PhantomData<*const ()>,
}

#[derive(Debug)]
struct Running {
    op: Op,
    flops: u64,
    bytes: u64,
    started: Instant,
}

impl Running {
    /// `None` within another op.
    fn begin(op: Op, flops: usize) -> Option<Self> {
        let started = Instant::now();
        let outermost = !WITHIN.replace(true);
        outermost.then_some(Self { op, flops: flops as u64, bytes: 0, started })
    }
}

impl Timer {
    /// Adds bytes that the call reads or writes.
    #[inline]
    pub fn moving(mut self, bytes: usize) -> Self {
        if let Some(running) = &mut self.running {
            running.bytes += bytes as u64;
        }
        self
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let Some(running) = self.running.take() else { return };
        WITHIN.set(false);
        let counters = &COUNTERS[running.op as usize];
        let nanoseconds = running.started.elapsed().as_nanos() as u64;
        counters.calls.fetch_add(1, Ordering::Relaxed);
        counters.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
        counters.flops.fetch_add(running.flops, Ordering::Relaxed);
        counters.bytes.fetch_add(running.bytes, Ordering::Relaxed);
    }
}
