//! What there is to test.

/// A source in `kernels/cuda`.
pub(crate) struct Source {
    /// Without its ending.
    pub(crate) name: &'static str,
    /// Every kernel in it.
    pub(crate) kernels: &'static [&'static str],
    /// Whether it is compiled for one dimension of a head.
    pub(crate) of_head_dim: bool,
}

impl Source {
    /// What is put before it, so that it is compiled for heads of this dimension.
    pub(crate) fn definition(&self, head_dim: usize) -> String {
        if self.of_head_dim { format!("#define HEAD_DIM {head_dim}\n") } else { String::new() }
    }
}

pub(crate) const SOURCES: &[Source] = &[
    Source {
        name: "activation",
        kernels: &[
            "activation_forward_f32",
            "activation_forward_bf16",
            "activation_backward_f32",
            "activation_backward_bf16",
        ],
        of_head_dim: false,
    },
    Source {
        name: "adamw",
        kernels: &[
            "adamw_f32_m32_f32",
            "adamw_f32_m32_bf16",
            "adamw_f32_m8_f32",
            "adamw_f32_m8_bf16",
            "adamw_master_m32_f32",
            "adamw_master_m32_bf16",
            "adamw_master_m8_f32",
            "adamw_master_m8_bf16",
            "adamw_stochastic_m32_f32",
            "adamw_stochastic_m32_bf16",
            "adamw_stochastic_m8_f32",
            "adamw_stochastic_m8_bf16",
            "moved_f32_m32",
            "moved_f32_m8",
            "moved_bf16_m32",
            "moved_bf16_m8",
        ],
        of_head_dim: false,
    },
    Source {
        name: "attention_backward",
        kernels: &[
            "attention_delta_f32",
            "attention_delta_bf16",
            "attention_backward_q_f32",
            "attention_backward_q_bf16",
            "attention_backward_kv_f32",
            "attention_backward_kv_bf16",
        ],
        of_head_dim: true,
    },
    Source {
        name: "attention_forward",
        kernels: &["attention_forward_f32", "attention_forward_bf16"],
        of_head_dim: true,
    },
    Source {
        name: "cross_entropy",
        kernels: &[
            "cross_entropy_forward_f32",
            "cross_entropy_forward_bf16",
            "cross_entropy_gradient_f32_f32",
            "cross_entropy_gradient_bf16_bf16",
            "cross_entropy_gradient_f32_bf16",
            "most_probable_piece_f32",
            "most_probable_merge",
            "cross_entropy_total",
        ],
        of_head_dim: false,
    },
    Source {
        name: "decode_attention",
        kernels: &[
            "decode_attention_store_f32",
            "decode_attention_store_bf16",
            "decode_attention_piece_f32_1",
            "decode_attention_piece_f32_2",
            "decode_attention_piece_f32_4",
            "decode_attention_piece_f32_8",
            "decode_attention_piece_bf16_1",
            "decode_attention_piece_bf16_2",
            "decode_attention_piece_bf16_4",
            "decode_attention_piece_bf16_8",
            "decode_attention_merge_f32",
            "decode_attention_merge_bf16",
        ],
        of_head_dim: true,
    },
    Source {
        name: "elementwise",
        kernels: &[
            "elementwise_add_f32",
            "elementwise_add_bf16",
            "elementwise_add_bias_f32",
            "elementwise_add_bias_bf16",
            "elementwise_bias_partial_f32",
            "elementwise_bias_partial_bf16",
            "elementwise_bias_sum",
        ],
        of_head_dim: false,
    },
    Source {
        name: "embedding",
        kernels: &[
            "embedding_forward_f32",
            "embedding_forward_bf16",
            "embedding_add_gradient_f32_f32",
            "embedding_add_gradient_bf16_f32",
            "embedding_add_gradient_bf16_bf16",
        ],
        of_head_dim: false,
    },
    Source {
        name: "gemv",
        kernels: &["gemv_f32_f32", "gemv_bf16_bf16", "gemv_bf16_f32"],
        of_head_dim: false,
    },
    Source {
        name: "norm",
        kernels: &[
            "norm_squares_f32",
            "norm_squares_bf16",
            "norm_total",
            "norm_clip",
            "norm_by_tensor",
        ],
        of_head_dim: false,
    },
    Source {
        name: "rms_norm",
        kernels: &[
            "rms_norm_forward_f32",
            "rms_norm_forward_bf16",
            "rms_norm_forward_add_f32",
            "rms_norm_forward_add_bf16",
            "rms_norm_backward_f32",
            "rms_norm_backward_bf16",
            "rms_norm_weight_sum",
        ],
        of_head_dim: false,
    },
    Source { name: "rope", kernels: &["rope_rotate_f32", "rope_rotate_bf16"], of_head_dim: false },
    Source {
        name: "rope_normed",
        kernels: &[
            "rope_normed_forward_f32",
            "rope_normed_forward_bf16",
            "rope_normed_backward_f32",
            "rope_normed_backward_bf16",
            "rope_normed_weight_sum",
        ],
        of_head_dim: false,
    },
];

/// The folder of the sources.
pub(crate) const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/cuda");

pub(crate) fn source(name: &str) -> &'static Source {
    SOURCES.iter().find(|source| source.name == name).expect("a source of this name")
}

/// A new source is a tested source.
#[test]
fn every_source_is_listed() {
    let mut files: Vec<String> = std::fs::read_dir(FOLDER)
        .expect("the folder of the sources")
        .filter_map(|entry| entry.expect("an entry").file_name().into_string().ok())
        .filter_map(|name| name.strip_suffix(".cu").map(str::to_owned))
        .collect();
    files.sort();
    let mut listed: Vec<&str> = SOURCES.iter().map(|source| source.name).collect();
    listed.sort_unstable();
    assert_eq!(files, listed);
}
