//! The weights under llama.cpp's names, changed as it wants them, in the types of ggml.
//!
//! O outputs and I inputs of a matrix, H heads, D head dim.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use chandler_kernels::device::to_host;

use super::GgufError;
use super::architecture::Architecture;
use crate::CausalLm;
use crate::weights::is_beyond_f16;

/// A type that the matrices can have in a GGUF file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgufType {
    /// 32 bits.
    F32,
    /// 16 bits, IEEE.
    F16,
    /// 16 bits with f32's exponent.
    Bf16,
    /// 8 bits and a scale for each 32.
    Q8_0,
    /// 6 bits, in blocks of 256.
    Q6K,
    /// 5 bits, in blocks of 256.
    Q5K,
    /// 4 bits, in blocks of 256.
    Q4K,
}

impl GgufType {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q6K => "q6_k",
            Self::Q5K => "q5_k",
            Self::Q4K => "q4_k",
        }
    }

    fn ggml(self) -> GgmlDType {
        match self {
            Self::F32 => GgmlDType::F32,
            Self::F16 => GgmlDType::F16,
            Self::Bf16 => GgmlDType::BF16,
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q6K => GgmlDType::Q6K,
            Self::Q5K => GgmlDType::Q5K,
            Self::Q4K => GgmlDType::Q4K,
        }
    }

    /// `enum ggml_type` of `ggml.h`.
    pub(super) fn code(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8_0 => 8,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
            Self::Bf16 => 30,
        }
    }

    /// `enum llama_ftype` of `llama.h`: the type of most tensors.
    pub(super) fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8_0 => 7,
            Self::Q4K => 14,
            Self::Q5K => 16,
            Self::Q6K => 18,
            Self::Bf16 => 32,
        }
    }

    /// The type itself, or the next wider one whose blocks fit into rows of `inputs` values.
    fn for_rows_of(self, inputs: usize) -> Self {
        let fits = |wanted: &Self| inputs.is_multiple_of(wanted.ggml().block_size());
        [self, Self::Q8_0, Self::F16].into_iter().find(fits).unwrap_or(Self::F16)
    }
}

/// A tensor as it will stand in the file.
pub(super) struct GgufTensor {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) stored: GgufType,
    /// Whether it was to be narrower.
    pub(super) is_widened: bool,
    change: Change,
    value: Tensor,
}

/// What becomes of a weight on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    None,
    /// The rows of each of so many heads, from halves to pairs: where a rotation turns row `i` with
    /// row `i + D/2`, llama.cpp's turns row `2i` with row `2i + 1`.
    Interleave(usize),
    /// A norm that scales by `1 + w` has that sum in the file.
    PlusOne,
}

/// Every tensor of the file, in the order of the model.
pub(super) fn tensors(
    model: &CausalLm,
    architecture: &Architecture,
    weights: GgufType,
) -> Result<Vec<GgufTensor>, GgufError> {
    let config = model.config();
    let mut all = vec![];
    if let Some(factors) = &architecture.rope_factors {
        let value = Tensor::new(factors.as_slice(), &Device::Cpu)?;
        all.push(GgufTensor::new("rope_freqs.weight".to_owned(), value, Change::None, weights));
    }
    for (_, param) in model.params().iter() {
        let name = gguf_name(&param.name, config.post_norms).ok_or_else(|| {
            let what = format!("a tensor {}", param.name);
            GgufError::Architecture { architecture: architecture.name, what }
        })?;
        let is_norm = param.name.ends_with("norm.weight");
        let change = if is_norm && config.unit_offset_norm {
            Change::PlusOne
        } else if architecture.interleaves && param.name.contains(".q_proj.") {
            Change::Interleave(config.num_attention_heads)
        } else if architecture.interleaves && param.name.contains(".k_proj.") {
            Change::Interleave(config.num_key_value_heads)
        } else {
            Change::None
        };
        all.push(GgufTensor::new(name, param.value.clone(), change, weights));
    }
    Ok(all)
}

/// `blk.0.attn_q.weight` of `model.layers.0.self_attn.q_proj.weight`.
fn gguf_name(ours: &str, post_norms: bool) -> Option<String> {
    let (module, kind) = ours.rsplit_once('.')?;
    let plain = match module {
        "model.embed_tokens" => Some("token_embd"),
        "model.norm" => Some("output_norm"),
        "lm_head" => Some("output"),
        _ => None,
    };
    if let Some(name) = plain {
        return Some(format!("{name}.{kind}"));
    }
    let (layer, part) = module.strip_prefix("model.layers.")?.split_once('.')?;
    let name = match part {
        "input_layernorm" => "attn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        "post_attention_layernorm" if post_norms => "post_attention_norm",
        "post_attention_layernorm" | "pre_feedforward_layernorm" => "ffn_norm",
        "post_feedforward_layernorm" => "post_ffw_norm",
        _ => return None,
    };
    Some(format!("blk.{layer}.{name}.{kind}"))
}

impl GgufTensor {
    fn new(name: String, value: Tensor, change: Change, weights: GgufType) -> Self {
        let shape = value.dims().to_vec();
        // Norms, biases and factors are small, and llama.cpp wants them in f32.
        let wanted = if shape.len() < 2 { GgufType::F32 } else { weights };
        let stored = shape.last().map_or(wanted, |inputs| wanted.for_rows_of(*inputs));
        Self { name, shape, stored, is_widened: stored != wanted, change, value }
    }

    /// Bytes of its data.
    pub(super) fn bytes(&self) -> usize {
        let ggml = self.stored.ggml();
        self.shape.iter().product::<usize>() / ggml.block_size() * ggml.type_size()
    }

    /// Its data, as the file has it.
    pub(super) fn encoded(&self) -> Result<Vec<u8>, GgufError> {
        let value = to_host(&self.value)?.to_dtype(DType::F32)?;
        let value = self.change.apply(&value)?.contiguous()?;
        if self.stored == GgufType::F16 && is_beyond_f16(&value)? {
            let (name, weights) = (self.name.clone(), self.stored.name());
            return Err(GgufError::OutOfRange { name, weights });
        }
        Ok(QTensor::quantize(&value, self.stored.ggml())?.data()?.into_owned())
    }
}

impl Change {
    fn apply(self, value: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::None => Ok(value.clone()),
            Self::PlusOne => value + 1.0,
            Self::Interleave(heads) => {
                let outputs = value.dim(0)?;
                let inputs = value.elem_count() / outputs;
                // [O, I] → [H, 2, D/2, I] → [H, D/2, 2, I] → [O, I]; a bias has I = 1.
                value
                    .reshape((heads, 2, outputs / heads / 2, inputs))?
                    .transpose(1, 2)?
                    .contiguous()?
                    .reshape(value.shape())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_head_go_from_halves_to_pairs() {
        let rows = Tensor::arange(0f32, 12.0, &Device::Cpu).unwrap();
        let order = |change: Change| change.apply(&rows).unwrap().to_vec1::<f32>().unwrap();
        // Two heads of six rows.
        let paired = [0., 3., 1., 4., 2., 5., 6., 9., 7., 10., 8., 11.];
        assert_eq!(order(Change::Interleave(2)), paired);
        assert_eq!(order(Change::PlusOne)[..2], [1.0, 2.0]);
        let matrix = rows.reshape((4, 3)).unwrap();
        let paired = Change::Interleave(1).apply(&matrix).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(paired[1], [6., 7., 8.]);
    }

    #[test]
    fn a_row_that_cannot_be_cut_into_blocks_is_stored_wider() {
        assert_eq!(GgufType::Q4K.for_rows_of(512), GgufType::Q4K);
        assert_eq!(GgufType::Q4K.for_rows_of(64), GgufType::Q8_0);
        assert_eq!(GgufType::Q4K.for_rows_of(48), GgufType::F16);
        assert_eq!(GgufType::Q8_0.for_rows_of(48), GgufType::F16);
        assert_eq!(GgufType::F32.for_rows_of(7), GgufType::F32);
        assert_eq!(GgufType::Bf16.for_rows_of(7), GgufType::Bf16);
    }

    #[test]
    fn a_value_beyond_f16_is_refused() {
        let encoded = |value: f32| {
            let value = Tensor::new(&[[value, 1.0]], &Device::Cpu).unwrap();
            GgufTensor::new("w".into(), value, Change::None, GgufType::F16).encoded()
        };
        assert_eq!(encoded(65_504.0).unwrap(), [0xff, 0x7b, 0x00, 0x3c]);
        assert!(matches!(encoded(65_520.0), Err(GgufError::OutOfRange { .. })));
    }
}
