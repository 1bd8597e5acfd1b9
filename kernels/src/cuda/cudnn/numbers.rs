//! What the library has numbers for, as NVIDIA's `cudnn_graph.h` of release 9 has them.

use super::descriptor::{DataType, HeuristicMode, Kind, Knob, Mode};
use super::graph::Name;

pub(super) const F32: DataType = DataType(0);
pub(super) const I32: DataType = DataType(4);
pub(super) const BF16: DataType = DataType(9);

/// Attributes of the operation itself, which differ between its passes.
pub(super) struct Numbers {
    pub(super) kind: Kind,
    pub(super) tensors: &'static [(i32, Name)],
    /// Of q's and of the keys' documents.
    pub(super) cu_seqlens: [i32; 2],
    /// The graph of the rules, and which of its tensors are its input and its output.
    pub(super) rules: [i32; 3],
    /// Of all of q, and of all of the keys.
    pub(super) most_tokens: Option<[i32; 2]>,
}

pub(super) const FORWARD: Numbers = Numbers {
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

pub(super) const BACKWARD: Numbers = Numbers {
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
pub(super) const AT_LEAST: Mode = Mode(303);
pub(super) const GREATER: Mode = Mode(302);
pub(super) const DIVIDE: Mode = Mode(6);
pub(super) const TANH: Mode = Mode(101);
pub(super) const MULTIPLY: Mode = Mode(1);

/// What the library would choose.
pub(super) const CHOSEN: HeuristicMode = HeuristicMode(3);
/// The knob that says in which order the gradients of queries are summed; at 4, in the same one every time
/// (there are such kernels for compute capability 9.0).
pub(super) const ORDER: Knob = Knob(14);
pub(super) const ORDERED: i64 = 4;
/// Choices that a configuration has at most.
pub(super) const MOST_KNOBS: usize = 20;
/// Configurations that are tried at most.
pub(super) const MOST_CONFIGS: usize = 8;
