//! The numbers of attributes, as NVIDIA's `cudnn_graph.h` of release 9 has them.

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
#[cfg(test)]
pub(super) const DEVICE_AS_JSON: i32 = 2702;
